//! Servers under load: how they are started, loaded, and stopped.

use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{find_program, output, workspace};

const PATIENCE: Duration = Duration::from_secs(60);

/// A server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// redis, which allocates with jemalloc.
    Redis,
    /// nginx with one worker.
    Nginx,
    /// Node's HTTP server.
    Node,
    /// CPython's, with threads.
    Python,
}

/// What a load generator says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answered {
    /// Requests per second.
    pub per_second: f64,
    /// 99 % of the requests took no longer, in ms.
    pub p99_ms: f64,
}

impl Server {
    /// Every server.
    pub const ALL: [Self; 4] = [Self::Redis, Self::Nginx, Self::Node, Self::Python];

    /// Name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis (jemalloc)",
            Self::Nginx => "nginx",
            Self::Node => "Node HTTP",
            Self::Python => "CPython HTTP",
        }
    }

    /// Programs without which it cannot be measured.
    const fn needs(self) -> [&'static str; 2] {
        match self {
            Self::Redis => ["redis-server", "redis-benchmark"],
            Self::Nginx => ["nginx", "wrk"],
            Self::Node => ["node", "wrk"],
            Self::Python => ["python3", "wrk"],
        }
    }

    /// The first program that is missing.
    pub fn missing(self) -> Option<&'static str> {
        self.needs().into_iter().find(|name| find_program(name).is_none())
    }

    fn command(self, port: u16, directory: &Path) -> Result<(&'static str, Vec<String>)> {
        let port = port.to_string();
        let script = |name: &str| workspace().join("bench/servers").join(name).display().to_string();
        Ok(match self {
            Self::Redis => {
                let options = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
                ("redis-server", options.map(str::to_owned).to_vec())
            }
            Self::Nginx => {
                let place = directory.display();
                std::fs::write(directory.join("file"), vec![b'x'; 4096]).context("cannot write a file")?;
                std::fs::write(directory.join("nginx.conf"), nginx_configuration(&port, &place.to_string()))
                    .context("cannot write nginx.conf")?;
                (
                    "nginx",
                    vec!["-p".to_owned(), place.to_string(), "-c".to_owned(), format!("{place}/nginx.conf")],
                )
            }
            Self::Node => ("node", vec![script("server.js"), port]),
            Self::Python => ("python3", vec![script("server.py"), port]),
        })
    }

    /// Starts it, perhaps by another program that is given its command, and waits until it accepts connections.
    pub fn start(self, wrapper: &[String], directory: &Path) -> Result<Running> {
        let port = free_port()?;
        let (name, arguments) = self.command(port, directory)?;
        let program = find_program(name).with_context(|| format!("no {name}"))?;
        let mut words = wrapper.iter().map(std::ffi::OsString::from).collect::<Vec<_>>();
        words.push(program.into());
        words.extend(arguments.into_iter().map(Into::into));
        let (first, rest) = words.split_first().context("no command")?;
        let child = Command::new(first)
            .args(rest)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A wrapper may be a script that waits for the server.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let mut running = Running { server: self, port, child };
        let deadline = Instant::now() + PATIENCE;
        // The server itself says nothing that could be waited for.
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = running.child.try_wait().context("cannot wait for the server")? {
                bail!("{name} ended with {status}");
            }
            if Instant::now() > deadline {
                bail!("{name} does not accept connections");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(running)
    }
}

fn nginx_configuration(port: &str, place: &str) -> String {
    format!(
        "daemon off; master_process off; worker_processes 1; pid {place}/nginx.pid; error_log {place}/error.log;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n  access_log off; keepalive_requests 1000000; client_body_temp_path {place}; proxy_temp_path {place};\n  \
           fastcgi_temp_path {place}; uwsgi_temp_path {place}; scgi_temp_path {place};\n  \
           server {{ listen 127.0.0.1:{port}; root {place}; gzip on; gzip_types *; gzip_min_length 1; }}\n}}\n"
    )
}

fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("no free port")?;
    Ok(listener.local_addr().context("no free port")?.port())
}

/// A server that runs. Dropping it ends it.
pub struct Running {
    server: Server,
    port: u16,
    child: Child,
}

impl Running {
    /// The process that was started: the server, unless there is a wrapper.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Loads it for about so many seconds.
    pub fn load(&self, seconds: u32) -> Result<Answered> {
        if self.server == Server::Redis {
            return self.load_redis(seconds);
        }
        let wrk = find_program("wrk").context("no wrk")?;
        let mut command = Command::new(wrk);
        command.args(["-t1", "-c16", "--latency", "-H", "Accept-Encoding: gzip"]);
        command.arg(format!("-d{seconds}s")).arg(format!("http://127.0.0.1:{}/file", self.port));
        parse_wrk(&output(&mut command)?).context("wrk says something else")
    }

    /// redis-benchmark counts requests, not seconds: a short run tells how many there are in a second.
    fn load_redis(&self, seconds: u32) -> Result<Answered> {
        let probe = self.redis(5_000)?;
        let requests = (probe.per_second * f64::from(seconds)).clamp(5_000.0, 2e7) as u64;
        self.redis(requests)
    }

    fn redis(&self, requests: u64) -> Result<Answered> {
        let mut command = Command::new(find_program("redis-benchmark").context("no redis-benchmark")?);
        command.args(["-p", &self.port.to_string(), "-n", &requests.to_string()]);
        command.args(["-r", "10000", "-d", "512", "-c", "20", "-t", "set", "--csv"]);
        parse_redis(&output(&mut command)?).context("redis-benchmark says something else")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have gone; nothing depends on it any more.
        let group = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// `"SET","54854.64","0.252","0.024","0.207","0.423","1.327","7.839"`.
fn parse_redis(text: &str) -> Option<Answered> {
    let line = text.lines().find(|line| line.starts_with("\"SET\""))?;
    let fields: Vec<&str> = line.split(',').map(|field| field.trim_matches('"')).collect();
    Some(Answered { per_second: fields.get(1)?.parse().ok()?, p99_ms: fields.get(6)?.parse().ok()? })
}

/// `     99%    1.38ms` and `Requests/sec:  54036.07`.
fn parse_wrk(text: &str) -> Option<Answered> {
    let after = |key: &str| text.lines().find_map(|line| line.trim().strip_prefix(key)).map(str::trim);
    let latency = after("99%")?;
    let split = latency.find(|byte: char| byte.is_ascii_alphabetic())?;
    let (number, unit) = latency.split_at(split);
    let factor = match unit {
        "us" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        _ => return None,
    };
    let p99_ms = number.parse::<f64>().ok()? * factor;
    Some(Answered { per_second: after("Requests/sec:")?.parse().ok()?, p99_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_load_generators_say() {
        let redis = "\"test\",\"rps\"\n\"SET\",\"54854.64\",\"0.252\",\"0.024\",\"0.207\",\"0.423\",\"1.327\",\"7.839\"\n";
        assert_eq!(parse_redis(redis), Some(Answered { per_second: 54854.64, p99_ms: 1.327 }));
        let wrk = "  Latency Distribution\n     50%  240.00us\n     99%    1.38ms\nRequests/sec:  54036.07\n";
        assert_eq!(parse_wrk(wrk), Some(Answered { per_second: 54036.07, p99_ms: 1.38 }));
        assert_eq!(parse_wrk(&wrk.replace("1.38ms", "900.00us")).map(|said| said.p99_ms), Some(0.9));
        assert_eq!(parse_wrk("Requests/sec: 1"), None);
    }
}
