//! The running lab, over `LAB_SOCK`: one line of JSON in, frames of a kind, a length and so many bytes out (testing/lab/server.py).

use anyhow::{Context, bail};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Instant,
};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Lab {
    socket: PathBuf,
    out: PathBuf,
}

impl Lab {
    /// The one that this program runs in.
    pub(crate) fn from_environment() -> anyhow::Result<Self> {
        let path = |name: &str| {
            let value = std::env::var_os(name);
            value
                .map(PathBuf::from)
                .with_context(|| format!("{name} is not set: this is for `scripts/lab pair -- PROGRAM`"))
        };
        Ok(Self { socket: path("LAB_SOCK")?, out: path("LAB_OUT")? })
    }

    fn request(&self, words: &[&str]) -> anyhow::Result<UnixStream> {
        let mut stream =
            UnixStream::connect(&self.socket).with_context(|| format!("no lab at {}", self.socket.display()))?;
        let directory = std::env::current_dir()?;
        let request = serde_json::json!({ "argv": words, "cwd": directory });
        stream.write_all(format!("{request}\n").as_bytes())?;
        Ok(stream)
    }

    /// Carries out one verb; gives its output.
    pub(crate) fn call(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut stream = self.request(words)?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match frame(&mut stream).with_context(|| format!("lab {}", words.join(" ")))? {
                (b'o', bytes) => out.extend(bytes),
                (b'x', code) if code == b"0" => return Ok(String::from_utf8(out)?),
                (b'x', _) => bail!("lab {}: {}", words.join(" "), String::from_utf8_lossy(&err).trim()),
                (_, bytes) => err.extend(bytes),
            }
        }
    }

    /// Starts this program in a VM, with those arguments.
    pub(crate) fn start(&self, host: &str, arguments: &[&str]) -> anyhow::Result<Job> {
        let program = std::env::current_exe()?;
        let program = program.to_str().context("the program's path is not UTF-8")?;
        let stream = self.request(&[&["exec", host, program], arguments].concat())?;
        let reader = BufReader::new(stream.try_clone()?);
        let (sender, heard) = channel();
        thread::spawn(move || listen(reader, &sender));
        Ok(Job { stream, heard, host: host.to_owned(), lab: self.clone() })
    }

    /// Makes a file that the VM sees at once in its `$LAB_OUT`.
    pub(crate) fn signal(&self, host: &str, name: &str) -> anyhow::Result<()> {
        let path = self.out.join(host).join("out").join(name);
        std::fs::write(&path, "").with_context(|| path.display().to_string())
    }
}

/// A program in a VM. Who drops it ends it.
#[derive(Debug)]
pub(crate) struct Job {
    stream: UnixStream,
    pub(crate) heard: Receiver<Heard>,
    host: String,
    lab: Lab,
}

impl Job {
    /// For a test that has failed: what the host's device has counted, its queue pairs and its neighbours.
    pub(crate) fn look_around(&self) -> String {
        let script =
            "cd /sys/class/infiniband/rxe0/ports/1/hw_counters && grep . *; rdma resource show qp; ip neighbour";
        self.lab
            .call(&["exec", "--timeout", "10", &self.host, "sh", "-c", script])
            .unwrap_or_else(|error| error.to_string())
    }
}

/// What comes from a job.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A line of its stdout.
    Line(Instant, String),
    /// How it ended: its exit code, or what became of the connection; and its stderr.
    Over(String),
}

impl Drop for Job {
    fn drop(&mut self) {
        // (It may be over.)
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn frame(stream: &mut impl Read) -> anyhow::Result<(u8, Vec<u8>)> {
    let mut header = [0; 5];
    stream.read_exact(&mut header).context("the lab ended the connection")?;
    let [kind, length @ ..] = header;
    let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut bytes)?;
    Ok((kind, bytes))
}

/// Thread: until the job is over or nobody listens.
fn listen(mut stream: impl BufRead, sender: &Sender<Heard>) {
    let (mut line, mut errors) = (Vec::new(), Vec::new());
    loop {
        let how = match frame(&mut stream) {
            Ok((b'o', bytes)) => {
                let at = Instant::now();
                line.extend(bytes);
                while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                    let whole: Vec<u8> = line.drain(..=end).collect();
                    let text = String::from_utf8_lossy(&whole).trim().to_owned();
                    if sender.send(Heard::Line(at, text)).is_err() {
                        return;
                    }
                }
                continue;
            }
            Ok((b'e', bytes)) => {
                errors.extend(bytes);
                continue;
            }
            Ok((_, code)) => format!("exit code {}", String::from_utf8_lossy(&code)),
            Err(error) => format!("{error:#}"),
        };
        // (Nobody may listen any more.)
        let _ = sender.send(Heard::Over(format!("{how}. {}", String::from_utf8_lossy(&errors).trim())));
        return;
    }
}
