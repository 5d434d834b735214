use offheap::record::*;
fn main() {
    let o = LoadOptions {
        limits: Limits::default(),
        tables: TableSizes { page_chunks: 1024, row_chunks: 4096, escapes: 8192, mapping_chunks: 256 },
        min_size_bytes: 0,
        max_size_bytes: u64::MAX,
        bpf_log: None,
        validate: true,
    };
    for p in [Purpose::Trace, Purpose::Floor, Purpose::Validate] {
        let t = std::time::Instant::now();
        match Programs::load(&o, p) {
            Ok(p) => {
                println!("{:?} {:?}", p.verification(), t.elapsed());
            }
            Err(e) => {
                let s = format!("{e:?}");
                println!("{e} {}", &s[s.len().saturating_sub(6000)..])
            }
        }
    }
}
