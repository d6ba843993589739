//! `iperf3`: what one TCP stream carries on this machine.

use super::{
    YardError,
    process::{self, Tool},
};
use crate::units::mib_per_s;
use serde_json::Value;
use std::{net::Ipv4Addr, time::Duration};

const TOOL: Tool = Tool { name: "iperf3", package: "iperf3" };

/// One stream over loopback for about so long: MB/sec (2^20 bytes a second), as the receiver counted.
///
/// # Errors
/// It is not installed, or gives no figure.
pub(crate) fn stream(time: Duration) -> Result<f64, YardError> {
    let port = process::free_port().map_err(|e| YardError::failed(TOOL.name, e.to_string()))?;
    let (port_text, seconds) = (port.to_string(), format!("{}", time.as_secs_f64().ceil().max(1.0)));
    let address = Ipv4Addr::LOCALHOST.to_string();
    let server = ["-s", "-1", "-B", &address, "-p", &port_text].map(str::to_owned);
    let client = ["-c", &address, "-p", &port_text, "-t", &seconds, "-J"].map(str::to_owned);
    let output = process::pair(&TOOL, &server, &client, port, time + Duration::from_secs(60))?;
    received(&output).map_err(|why| YardError::failed(TOOL.name, why))
}

fn received(json: &str) -> Result<f64, String> {
    let report: Value = serde_json::from_str(json).map_err(|e| format!("its output is not JSON: {e}"))?;
    if let Some(error) = report.get("error").and_then(Value::as_str) {
        return Err(error.to_owned());
    }
    let sum = &report["end"]["sum_received"];
    let (bytes, seconds) = (sum["bytes"].as_u64(), sum["seconds"].as_f64());
    match (bytes, seconds) {
        (Some(bytes), Some(seconds)) if bytes > 0 && seconds > 0.0 => Ok(mib_per_s(bytes, seconds)),
        _ => Err("its report has no end.sum_received".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of iperf3 3.12; `start` and `intervals` left out.
    const REPORT: &str = r#"{"start":{},"intervals":[],"end":{"streams":[],
        "sum_sent":{"start":0,"end":1.000065,"seconds":1.000065,"bytes":2838364160,"bits_per_second":22705437226.5,"retransmits":0,"sender":true},
        "sum_received":{"start":0,"end":1.000229,"seconds":2.0,"bytes":2097152000,"bits_per_second":8388608000.0,"sender":true},
        "sender_tcp_congestion":"cubic"}}"#;

    #[test]
    fn the_receivers_count_is_taken() {
        assert_eq!(received(REPORT), Ok(1000.0));
    }

    #[test]
    fn errors_are_passed_on() {
        let refused = r#"{"start":{},"end":{},"error":"unable to connect to server: Connection refused"}"#;
        assert_eq!(received(refused), Err("unable to connect to server: Connection refused".to_owned()));
        assert!(received("iperf3: error").unwrap_err().contains("not JSON"));
        assert!(received("{}").unwrap_err().contains("sum_received"));
    }
}
