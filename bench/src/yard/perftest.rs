//! perftest: `ib_write_bw`, `ib_write_lat`, `ib_send_lat`, what RDMA people know their devices by.
//!
//! Latencies are half a round trip, as perftest gives them. MB/sec are 2^20 bytes a second.

use super::{
    YardError,
    process::{self, Tool},
};
use crate::{link::Port, stats::Summary};
use serde::Serialize;
use std::time::Duration;

const PACKAGE: &str = "perftest";
/// 4.096 µs * 2^18 = 1.1 s: its default, 67 ms, has been seen to fail on busy machines without any fault.
const ACK_TIMEOUT: &str = "18";
/// Besides the measurement: perftest's own setup, which takes seconds on emulated machines.
const PATIENCE: Duration = Duration::from_secs(60);

/// A bandwidth test's result.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Bandwidth {
    /// Of each message.
    pub bytes: usize,
    /// Messages.
    pub iterations: u64,
    /// MB/sec; 0 when the test ran for a time rather than a number of messages.
    pub peak: f64,
    /// MB/sec.
    pub average: f64,
}

/// The devices that a test goes between.
#[derive(Clone, Debug)]
pub(crate) struct Devices {
    /// The sender's, where perftest's client runs.
    pub near: Port,
    /// The receiver's.
    pub far: Port,
}

impl Devices {
    fn run(&self, tool: Tool, options: &[String], patience: Duration) -> Result<String, YardError> {
        let port = process::free_port().map_err(|e| YardError::failed(tool.name, e.to_string()))?;
        let args = |at: &Port| {
            let (gid, port) = (at.gid_index.to_string(), port.to_string());
            let fixed = ["-F", "-d", &at.device, "-x", &gid, "-p", &port];
            fixed.into_iter().map(str::to_owned).chain(options.iter().cloned()).collect::<Vec<_>>()
        };
        let mut client = args(&self.near);
        client.push("127.0.0.1".to_owned());
        process::pair(&tool, &args(&self.far), &client, port, patience + PATIENCE)
    }

    /// `ib_write_bw` with messages of so many bytes for about so long.
    ///
    /// # Errors
    /// It is not installed, or gives no figure.
    pub(crate) fn write_bw(&self, bytes: usize, time: Duration) -> Result<Bandwidth, YardError> {
        let tool = Tool { name: "ib_write_bw", package: PACKAGE };
        let seconds = time.as_secs_f64().ceil().max(1.0);
        let options =
            ["-s", &bytes.to_string(), "-D", &format!("{seconds}"), "-f", "0", "-u", ACK_TIMEOUT].map(str::to_owned);
        let output = self.run(tool, &options, time)?;
        bandwidth(&output).ok_or_else(|| YardError::failed("ib_write_bw", unreadable(&output)))
    }

    /// `ib_write_lat` with 64 bytes.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn write_lat(&self, iterations: u32) -> Result<Summary, YardError> {
        self.latency("ib_write_lat", &[], iterations)
    }

    /// `ib_send_lat` with 64 bytes on reliable queue pairs.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn send_lat(&self, iterations: u32) -> Result<Summary, YardError> {
        self.latency("ib_send_lat", &[], iterations)
    }

    /// `ib_send_lat` with 64 bytes as datagrams.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn send_lat_ud(&self, iterations: u32) -> Result<Summary, YardError> {
        self.latency("ib_send_lat", &["-c", "UD"], iterations)
    }

    fn latency(&self, name: &'static str, more: &[&str], iterations: u32) -> Result<Summary, YardError> {
        let mut options = vec!["-s".to_owned(), "64".to_owned(), "-n".to_owned(), iterations.to_string()];
        options.extend(more.iter().map(|&s| s.to_owned()));
        let output = self.run(Tool { name, package: PACKAGE }, &options, Duration::ZERO)?;
        latency(&output).ok_or_else(|| YardError::failed(name, unreadable(&output)))
    }
}

fn unreadable(output: &str) -> String {
    let last = output.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("nothing");
    format!("its output is not understood; it ends with: {last}")
}

/// The titles and the values of the table at the end, paired. Titles are separated by blanks, and some contain one
/// ("BW peak\[MB/sec\]", "99% percentile\[usec\]"): those end with a bracket.
fn table(output: &str) -> Option<Vec<(String, f64)>> {
    let mut lines = output.lines().skip_while(|l| !l.trim_start().starts_with("#bytes"));
    let (head, row) = (lines.next()?, lines.next()?);
    let mut titles: Vec<String> = Vec::new();
    let mut open = String::new();
    for word in head.split_ascii_whitespace() {
        open.push_str(word);
        if open.starts_with('#') || open.ends_with(']') {
            titles.push(std::mem::take(&mut open));
        } else {
            open.push(' ');
        }
    }
    let values = row.split_ascii_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>().ok()?;
    (titles.len() == values.len()).then(|| titles.into_iter().zip(values).collect())
}

/// One column; `None` if it is not there. Figures are never negative.
fn column(table: &[(String, f64)], title: &str) -> Option<f64> {
    table.iter().find(|(t, _)| t == title).map(|(_, v)| *v).filter(|v| v.is_finite() && *v >= 0.0)
}

fn count(table: &[(String, f64)], title: &str) -> Option<u64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; saturates")]
    column(table, title).map(|v| v as u64)
}

fn bandwidth(output: &str) -> Option<Bandwidth> {
    let table = table(output)?;
    // Newer versions say MiB/sec, and mean the same.
    let rate = |what: &str| {
        column(&table, &format!("BW {what}[MB/sec]")).or_else(|| column(&table, &format!("BW {what}[MiB/sec]")))
    };
    let bytes = usize::try_from(count(&table, "#bytes")?).ok()?;
    let average = rate("average")?;
    (average > 0.0).then_some(())?;
    Some(Bandwidth { bytes, iterations: count(&table, "#iterations")?, peak: rate("peak")?, average })
}

fn latency(output: &str) -> Option<Summary> {
    let table = table(output)?;
    Some(Summary {
        iterations: count(&table, "#iterations")?,
        t_min: column(&table, "t_min[usec]")?,
        t_max: column(&table, "t_max[usec]")?,
        t_typical: column(&table, "t_typical[usec]")?,
        t_avg: column(&table, "t_avg[usec]")?,
        t_stdev: column(&table, "t_stdev[usec]")?,
        p99: column(&table, "99% percentile[usec]")?,
        p999: column(&table, "99.9% percentile[usec]")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bandwidth_test_of_so_many_messages_is_read() {
        let read = bandwidth(include_str!("../../tests/fixtures/ib_write_bw.txt")).unwrap();
        assert_eq!(read, Bandwidth { bytes: 65536, iterations: 500, peak: 66.52, average: 45.58 });
    }

    #[test]
    fn a_bandwidth_test_of_so_many_seconds_is_read() {
        let read = bandwidth(include_str!("../../tests/fixtures/ib_write_bw-duration.txt")).unwrap();
        assert_eq!(read, Bandwidth { bytes: 65536, iterations: 1181, peak: 0.0, average: 36.86 });
    }

    #[test]
    fn newer_versions_units_are_read() {
        let old = include_str!("../../tests/fixtures/ib_write_bw.txt");
        assert_eq!(bandwidth(&old.replace("MB/sec", "MiB/sec")), bandwidth(old));
    }

    #[test]
    fn latency_tests_are_read() {
        let rc = latency(include_str!("../../tests/fixtures/ib_write_lat.txt")).unwrap();
        let columns = (rc.iterations, rc.t_min, rc.t_max, rc.t_typical, rc.t_avg, rc.t_stdev, rc.p99, rc.p999);
        assert_eq!(columns, (300, 16.23, 15032.95, 16.99, 2639.34, 3511.30, 13501.51, 15032.95));
        let ud = latency(include_str!("../../tests/fixtures/ib_send_lat-ud.txt")).unwrap();
        assert_eq!((ud.iterations, ud.t_typical, ud.p99), (300, 22.09, 11703.59));
    }

    #[test]
    fn what_is_no_result_is_no_figure() {
        let whole = include_str!("../../tests/fixtures/ib_write_bw.txt");
        let head_only = whole.split(" 65536 ").next().unwrap();
        let zero = whole.replace("45.58", "0.00");
        for text in ["", "Couldn't connect to 127.0.0.1:18515", head_only, &zero, &whole.replace("45.58", "inf")] {
            assert_eq!(bandwidth(text), None, "{text}");
        }
        assert_eq!(latency(whole), None, "another test's columns");
        assert!(unreadable("a\nlast words\n\n").contains("last words"));
    }
}
