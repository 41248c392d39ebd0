//! How the page is written: as OpenMetrics for who asks for it, as Prometheus does, else in the text format from
//! before it, which everything else reads (`promtool check metrics`, agents, `curl`). Both have the same samples;
//! they differ in what a counter's family is called.

use ::http::{HeaderMap, header};

/// One of the two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// <https://prometheus.io/docs/specs/om/open_metrics_spec/>.
    OpenMetrics,
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/>, version 0.0.4.
    Text,
}

impl Format {
    /// What the client takes.
    pub(super) fn accepted(headers: &HeaderMap) -> Self {
        let mut accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        if accepted.any(|value| value.contains("application/openmetrics-text")) {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// The page, which is given as OpenMetrics.
    pub(super) fn write(self, open_metrics: String) -> String {
        match self {
            Self::OpenMetrics => open_metrics,
            Self::Text => as_text(&open_metrics),
        }
    }
}

/// Before OpenMetrics a counter's family had the name of its samples, `_total` included.
fn as_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            // Only the next line says whether it is of a counter.
            (Some("#"), Some("HELP"), Some(name), said) => help = Some((name, said.unwrap_or_default())),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let suffix = if kind == "counter" { "_total" } else { "" };
                if let Some((_, said)) = help.take().filter(|(of, _)| *of == name) {
                    text.extend(["# HELP ", name, suffix, " ", said, "\n"]);
                }
                text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
            }
            (Some("#"), ..) => {}
            _ => text.extend([line, "\n"]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use ::http::HeaderValue;

    use super::*;

    fn accepted(accept: &[&'static str]) -> Format {
        let values = accept.iter().map(|value| (header::ACCEPT, HeaderValue::from_static(value)));
        Format::accepted(&values.collect())
    }

    #[test]
    fn who_does_not_ask_for_openmetrics_gets_what_everybody_reads() {
        // Prometheus 2.42, and the `scrape_classic_histograms` of Prometheus 3.
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(accepted(&[prometheus]), Format::OpenMetrics);
        assert_eq!(accepted(&["text/html", "application/openmetrics-text"]), Format::OpenMetrics);
        assert_eq!(accepted(&[]), Format::Text);
        assert_eq!(accepted(&["*/*"]), Format::Text);
        assert_eq!(accepted(&["text/plain;version=0.0.4"]), Format::Text);
    }

    #[test]
    fn counters_have_their_whole_name_in_the_text_format() {
        let page = "# HELP a_b Things, and more.\n# TYPE a_b counter\na_b_total{x=\"# TYPE\"} 1\n\
                    # HELP c Others.\n# TYPE c gauge\nc 2\n# EOF\n";
        let text = "# HELP a_b_total Things, and more.\n# TYPE a_b_total counter\na_b_total{x=\"# TYPE\"} 1\n\
                    # HELP c Others.\n# TYPE c gauge\nc 2\n";
        assert_eq!(Format::Text.write(page.to_owned()), text);
        assert_eq!(Format::OpenMetrics.write(page.to_owned()), page);
    }
}
