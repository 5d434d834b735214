//! Sites that leak.

use super::{FOR_EVER, Load, arrivals, case};
use crate::profile::simulation::Case;
use crate::trend::simulation::Truth;

pub(super) fn leaking() -> Vec<Case> {
    use Truth::{Leaks, Unknowable};
    vec![
        case("leak of 100 % of the churn", Leaks, |r, b| Load::leaky(r, b, 1.0, |_| 1.0)),
        case("leak of 50 %, churn of 1 s", Leaks, |r, b| Load::leaky(r, b, 0.5, |r| r.exponential())),
        case("leak of 10 %, churn of 1 s", Leaks, |r, b| Load::leaky(r, b, 0.1, |r| r.exponential())),
        case("leak of 5 %, churn of 0.05 s", Leaks, |r, b| {
            Load::leaky(r, b, 0.05, |r| 0.05 * r.exponential())
        }),
        case("leak of 5 %, churn of 1 s", Leaks, |r, b| Load::leaky(r, b, 0.05, |r| r.exponential())),
        case("leak of 5 %, churn of 3 s", Leaks, |r, b| Load::leaky(r, b, 0.05, |r| 3.0 * r.exponential())),
        case("leak of 5 %, churn of 10 s", Unknowable, |r, b| {
            Load::leaky(r, b, 0.05, |r| 10.0 * r.exponential());
        }),
        case("leak of 50 %, churn of 10 s", Unknowable, |r, b| {
            Load::leaky(r, b, 0.5, |r| 10.0 * r.exponential());
        }),
        case("leak of 5 %, churn fixed, 2 s", Leaks, |r, b| Load::leaky(r, b, 0.05, |_| 2.0)),
        case("leak of 5 %, churn log-normal, median 0.3 s, σ 1", Leaks, |r, b| {
            Load::leaky(r, b, 0.05, |r| 0.3 * r.normal().exp());
        }),
        case("leak of 5 %, churn log-normal, median 0.3 s, σ 2", Unknowable, |r, b| {
            Load::leaky(r, b, 0.05, |r| 0.3 * (2.0 * r.normal()).exp());
        }),
    ]
}

pub(super) fn leaking_otherwise() -> Vec<Case> {
    use Truth::{Leaks, Unknowable};
    vec![
        case("leak of 16 bytes a second under megabytes of churn", Leaks, |r, b| {
            Load { rate: 500.0, bytes: 16_384.0, varies: true }.churn(r, b, |r| 0.3 * r.exponential());
            Load { rate: 1.0, bytes: 16.0, varies: false }.leak(r, b, 1.0);
        }),
        case("leak of 5 % in steps of 3 s, churn of 1 s", Leaks, |r, b| {
            let load = Load::new(r);
            load.short(r, b);
            let mut at_s = 3.0 * r.uniform();
            while at_s < b.length() {
                for _ in 0..(0.15 * load.rate).ceil() as usize {
                    b.push(at_s, FOR_EVER, load.bytes);
                }
                at_s += 3.0;
            }
        }),
        case("leak of 10 % that begins after 30 to 45 %", Leaks, |r, b| {
            let (load, from_s) = (Load::new(r), r.between(0.3, 0.45) * b.length());
            load.short(r, b);
            load.leak_from(r, b, 0.1, from_s);
            b.leak_bytes_per_s = Some(0.1 * load.rate * load.bytes);
        }),
        case("leak of 5 % under a sawtooth of 2 s", Leaks, |r, b| {
            let load = Load::new(r);
            load.cycles(r, b, 2.0);
            load.leak(r, b, 0.05);
        }),
        case("leak of 5 % under a sawtooth of 5 s", Leaks, |r, b| {
            let load = Load::new(r);
            load.cycles(r, b, 5.0);
            load.leak(r, b, 0.05);
        }),
        case("leak of 5 % under a sawtooth of 10 s", Unknowable, |r, b| {
            let load = Load::new(r);
            load.cycles(r, b, 10.0);
            load.leak(r, b, 0.05);
        }),
        case("leak of 5 % after a warm-up", Leaks, |r, b| {
            let load = Load::new(r);
            load.short(r, b);
            load.fill(r, b, 2.0);
            load.leak(r, b, 0.05);
        }),
        case("leak of 10 % masked by what the site itself gives back", Unknowable, |r, b| {
            let (load, length_s) = (Load::new(r), b.length());
            for _ in 0..(0.3 * load.rate * length_s) as usize {
                let born_s = r.uniform();
                b.push(born_s, 1.0 + length_s * r.uniform(), load.bytes);
            }
            load.leak(r, b, 0.1);
        }),
        case("one large block every 2 s", Leaks, |r, b| {
            let mut at_s = 2.0 * r.uniform();
            while at_s < b.length() {
                b.push(at_s, FOR_EVER, 1e6);
                at_s += 2.0;
            }
            b.leak_bytes_per_s = Some(5e5);
        }),
        case("one buffer that is reallocated and grows", Leaks, |r, b| {
            let (step_s, length_s) = (r.between(0.1, 1.0), b.length());
            let mut at_s = step_s * r.uniform();
            while at_s < length_s {
                b.push(at_s, step_s, 1e4 * (1.0 + at_s));
                at_s += step_s;
            }
            b.leak_bytes_per_s = Some(1e4);
        }),
        case("fifty buffers that are reallocated and grow", Leaks, |r, b| {
            let length_s = b.length();
            for _ in 0..50 {
                let mut at_s = r.exponential();
                while at_s < length_s {
                    let lifetime_s = r.exponential();
                    b.push(at_s, lifetime_s, 2e3 + 1e3 * at_s);
                    at_s += lifetime_s;
                }
            }
            b.leak_bytes_per_s = Some(5e4);
        }),
        case("leak in proportion to itself, doubles every 10 s, and churn", Leaks, |r, b| {
            let (load, length_s) = (Load::new(r), b.length());
            load.short(r, b);
            arrivals(r, 0.0, length_s, load.rate, |r, at_s| {
                if r.uniform() < ((at_s - length_s) / 10.0).exp2() {
                    let bytes = load.size(r);
                    b.push(at_s, FOR_EVER, bytes);
                }
            });
        }),
    ]
}
