//! The parts of the page where a person asks something: who has an image or digest, and how fast it comes.

use std::time::Duration;

use spegel_core::{
    FoundHolders, Member, PeerId, Report,
    measure::{BLOB_BYTES_MAX, TIME_MAX, TOTAL_BYTES_MAX},
    oci::{ReferenceError, Sought},
};

use super::{
    html::Html,
    measure::{Measured, Step},
    page::{bytes, duration},
};

/// Longest text that is taken for a name. Shorter and legal names do not fit; longer is nobody's name.
pub(super) const NAME_BYTES_MAX: usize = 1024;

/// What was looked for, and what was found; nothing where the core has ended.
#[derive(Debug)]
pub(super) struct Search {
    /// As it was typed.
    pub(super) text: String,
    pub(super) answer: Result<(Sought, Option<FoundHolders>), ReferenceError>,
}

/// What was measured.
#[derive(Debug)]
pub(super) struct Measurement {
    /// As it was typed.
    pub(super) text: String,
    pub(super) answer: Result<Measured, String>,
}

/// Who has it?
pub(super) fn search(html: &mut Html, search: Option<&Search>, report: Option<&Report>) {
    html.raw("<section aria-labelledby=\"search\">\n<h2 id=\"search\">Who has this image or digest?</h2>\n");
    html.raw("<form method=\"get\" action=\"./#search\">\n<label>Image or digest ");
    name_field(html, "q", search.map_or("", |search| search.text.as_str()));
    html.raw("</label>\n<button>Search</button>\n</form>\n");
    if let Some(search) = search {
        html.raw("<div role=\"status\">\n");
        match &search.answer {
            Err(error) => drop(html.raw("<p class=\"bad\">That is no name: ").text(error).raw(".</p>\n")),
            Ok((_, None)) => drop(html.raw("<p class=\"bad\">This node is ending.</p>\n")),
            Ok((sought, Some(found))) => holders(html, sought, found, report),
        }
        html.raw("</div>\n");
    }
    html.raw("</section>\n");
}

/// Where the name of an image is typed; `text` is what was.
fn name_field(html: &mut Html, field: &'static str, text: &str) {
    html.raw("<input type=\"text\" name=\"").raw(field);
    html.raw("\" required autocomplete=\"off\" autocapitalize=\"none\" spellcheck=\"false\" value=\"");
    html.text(text).raw("\">");
}

fn holders(html: &mut Html, sought: &Sought, found: &FoundHolders, report: Option<&Report>) {
    html.raw("<p><strong>").text(sought.identifier()).raw("</strong>: ");
    html.raw(if found.is_held_here { "this node has it" } else { "this node does not share it" });
    html.raw(match (found.others.is_empty(), found.is_certain) {
        (false, _) => ", and so do others.",
        (true, true) => ", and no other does.",
        (true, false) => ", and nobody could say in time whether another does.",
    });
    html.raw("</p>\n");
    let member = |peer: &PeerId| report?.members.iter().find(|member| member.peer == *peer);
    if !found.others.is_empty() {
        html.table(
            "Others who have it; where many do, some of them",
            ["Peer", "Addresses", "Zone"],
            found.others.iter().map(|peer| holder(peer, member(peer))),
            "",
        );
    }
}

fn holder(peer: &PeerId, member: Option<&Member>) -> [String; 3] {
    let addrs =
        member.map(|member| member.addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    let zone = member.and_then(|member| member.zone.as_ref()).map_or("none", |zone| zone.as_str());
    [peer.to_string(), addrs.unwrap_or_else(|| "left since".to_owned()), zone.to_owned()]
}

/// How fast is it?
pub(super) fn measure(html: &mut Html, measurement: Option<&Measurement>) {
    html.raw("<section aria-labelledby=\"measure\">\n<h2 id=\"measure\">Measure a pull</h2>\n");
    html.raw("<p>Asks the mirror of this node for an image as containerd would: ")
        .text(bytes(TOTAL_BYTES_MAX));
    html.raw(" of it at most, ").text(bytes(BLOB_BYTES_MAX)).raw(" of a layer, for no longer than ");
    html.text(TIME_MAX.as_secs()).raw(" seconds. Nothing is stored.</p>\n");
    html.raw("<form method=\"post\" action=\"measure#measure\">\n<label>Image ");
    name_field(html, "image", measurement.map_or("", |measurement| measurement.text.as_str()));
    html.raw("</label>\n<button>Measure</button>\n</form>\n");
    if let Some(measurement) = measurement {
        html.raw("<div role=\"status\">\n");
        match &measurement.answer {
            Err(error) => drop(html.raw("<p class=\"bad\">").text(error).raw("</p>\n")),
            Ok(measured) => result(html, measured),
        }
        html.raw("</div>\n");
    }
    html.raw("</section>\n");
}

fn result(html: &mut Html, measured: &Measured) {
    if let Some(trouble) = &measured.trouble {
        html.raw("<p class=\"bad\">").text(trouble).raw("</p>\n");
    }
    let total = measured
        .steps
        .iter()
        .fold((0, Duration::ZERO), |(bytes, took), step| (bytes + step.bytes, took + step.took));
    html.raw("<p><strong>").text(bytes(total.0)).raw("</strong> in <strong>").text(duration(total.1));
    html.raw("</strong>")
        .text(rate(total.0, total.1).map_or_else(String::new, |rate| format!(", {rate}")))
        .raw(".</p>\n");
    html.table(
        "Requests in their order; from whom they were answered, recent pulls tell, except for what is here",
        ["What", "Bytes", "First byte", "Took", "Speed", "Answer"],
        measured.steps.iter().map(step_row),
        "Nothing was asked.",
    );
}

fn step_row(step: &Step) -> [String; 6] {
    [
        step.what.clone(),
        bytes(step.bytes),
        duration(step.first_byte),
        duration(step.took),
        rate(step.bytes, step.took).unwrap_or_else(|| "too short to tell".to_owned()),
        step.outcome.as_ref().map_or_else(Clone::clone, |()| "as wanted".to_owned()),
    ]
}

/// Of what is too short it would be that of the request.
fn rate(sent: u64, took: Duration) -> Option<String> {
    const SAMPLE_BYTES_MIN: u64 = 1 << 20;
    let micros = u64::try_from(took.as_micros()).ok().filter(|micros| *micros > 0)?;
    (sent >= SAMPLE_BYTES_MIN).then(|| format!("{}/s", bytes(sent.saturating_mul(1_000_000) / micros)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "\"><script>alert(1)</script>";

    #[test]
    fn what_was_typed_stays_text() {
        let mut html = Html::default();
        let wrong = Search { text: HOSTILE.to_owned(), answer: HOSTILE.parse().map(|sought| (sought, None)) };
        search(&mut html, Some(&wrong), None);
        let measured = Measured { steps: Vec::new(), trouble: Some(HOSTILE.to_owned()) };
        measure(&mut html, Some(&Measurement { text: HOSTILE.to_owned(), answer: Ok(measured) }));
        measure(&mut html, Some(&Measurement { text: HOSTILE.to_owned(), answer: Err(HOSTILE.to_owned()) }));
        let html = html.finish();
        assert!(!html.contains("<script") && html.contains("That is no name"), "{html}");
        assert_eq!(html.matches("&quot;&gt;&lt;script&gt;").count(), 5, "{html}");
    }

    #[test]
    fn answer_tells_who_has_it_and_how_sure_that_is() {
        let says = |found: FoundHolders| {
            let mut html = Html::default();
            let answer = "nginx".parse().map(|sought| (sought, Some(found)));
            search(&mut html, Some(&Search { text: "nginx".to_owned(), answer }), None);
            html.finish()
        };
        let peer = PeerId::from_public_key([7; 32]);
        let page = says(FoundHolders { is_held_here: true, others: vec![peer], is_certain: true });
        assert!(
            page.contains("docker.io/library/nginx:latest</strong>: this node has it, and so do others"),
            "{page}"
        );
        assert!(page.contains(&format!(">{peer}</td>")) && page.contains(">left since</td>"), "{page}");
        let page = says(FoundHolders { is_certain: true, ..FoundHolders::default() });
        assert!(page.contains("this node does not share it, and no other does."), "{page}");
        let page = says(FoundHolders::default());
        assert!(page.contains("nobody could say in time"), "{page}");
    }

    #[test]
    fn speed_is_told_of_what_is_long_enough() {
        assert_eq!(rate(1 << 20, Duration::from_millis(500)).as_deref(), Some("2.0\u{a0}MiB/s"));
        assert_eq!(rate((1 << 20) - 1, Duration::from_secs(1)), None);
        assert_eq!(rate(1 << 20, Duration::ZERO), None);
    }
}
