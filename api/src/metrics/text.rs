//! The two text formats: OpenMetrics, which the official client library writes, and Prometheus's own older one.

use prometheus_client::{collector::Collector, encoding::text::encode, registry::Registry};

/// What `collector` has, as OpenMetrics.
#[must_use]
pub fn openmetrics(collector: impl Collector) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(collector));
    let mut text = String::with_capacity(16 << 10);
    // Writing to a string does not fail.
    let _ = encode(&mut text, &registry);
    text
}

/// OpenMetrics as Prometheus's text format 0.0.4: a counter's family is named like its sample, an info is a gauge, and there
/// is neither unit nor end.
#[must_use]
pub fn plain(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(_), text) => help = Some(text.unwrap_or("")),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    _ => ("", kind),
                };
                let help = help.take().unwrap_or("");
                out.push_str(&format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n"));
            }
            (Some("#"), ..) => {}
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn families_are_named_like_their_samples() {
        let text = "# HELP a_x Some text.\n# TYPE a_x counter\na_x_total 1\n# HELP b_s_seconds S.\n# TYPE b_s_seconds gauge\n\
                    # UNIT b_s_seconds seconds\nb_s_seconds{l=\"# TYPE\"} 2\n# HELP c I.\n# TYPE c info\nc_info 1\n# EOF\n";
        let expected = "# HELP a_x_total Some text.\n# TYPE a_x_total counter\na_x_total 1\n# HELP b_s_seconds S.\n\
                        # TYPE b_s_seconds gauge\nb_s_seconds{l=\"# TYPE\"} 2\n# HELP c_info I.\n# TYPE c_info gauge\nc_info 1\n";
        assert_eq!(plain(text), expected);
    }
}
