//! HTML by construction: what is written in this program goes in as it stands, and everything else is
//! escaped. Image names, zones, errors and addresses come from other nodes and from registries, and any
//! of them may be hostile.

use std::fmt::{self, Display, Write as _};

/// Longest text of a cell that stays on one line, in characters. Shorter and quantities are parted from their units, as
/// columns give way to those with digests; longer and a table may be wider than a screen.
const SHORT_CHARS_MAX: usize = 16;

/// A page, or a part of one.
#[derive(Debug, Default)]
pub(super) struct Html(String);

impl Html {
    /// Adds markup. That it is a literal is what keeps everything else out.
    pub(super) fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Adds text, or the value of an attribute between quotation marks.
    pub(super) fn text(&mut self, text: impl Display) -> &mut Self {
        write!(Escaped(&mut self.0), "{text}").expect("a string takes everything");
        self
    }

    /// A row of a list of terms.
    pub(super) fn term(&mut self, term: &'static str, text: impl Display) -> &mut Self {
        self.raw("<dt>").raw(term).raw("</dt><dd>").text(text).raw("</dd>\n")
    }

    /// A table, or `empty` as a sentence where it would have no rows. Roles are said again because a narrow screen
    /// shows rows as blocks, and blocks are no table to a screen reader.
    pub(super) fn table<const N: usize>(
        &mut self,
        caption: &'static str,
        heads: [&'static str; N],
        rows: impl IntoIterator<Item = [String; N]>,
        empty: &'static str,
    ) -> &mut Self {
        let mut rows = rows.into_iter().peekable();
        if rows.peek().is_none() {
            return self.raw("<p>").raw(empty).raw("</p>\n");
        }
        self.raw("<table role=\"table\"><caption>").raw(caption).raw("</caption>\n");
        self.raw("<thead role=\"rowgroup\"><tr role=\"row\">");
        for head in heads {
            self.raw("<th role=\"columnheader\" scope=\"col\">").raw(head).raw("</th>");
        }
        self.raw("</tr></thead>\n<tbody role=\"rowgroup\">\n");
        for row in rows {
            self.row(heads, &row);
        }
        self.raw("</tbody></table>\n")
    }

    /// A row of a table with these heads.
    pub(super) fn row<const N: usize>(&mut self, heads: [&'static str; N], cells: &[String; N]) -> &mut Self {
        self.raw("<tr role=\"row\">");
        for (head, cell) in heads.iter().zip(cells) {
            let is_short = cell.chars().count() <= SHORT_CHARS_MAX;
            self.raw("<td role=\"cell\" data-label=\"").raw(head);
            self.raw(if is_short { "\" class=\"short\">" } else { "\">" }).text(cell).raw("</td>");
        }
        self.raw("</tr>\n")
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            match char {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                '\n' | '\t' => self.0.push(' '),
                // Text that turns its direction around can make a name look like another one.
                char if char.is_control() || is_bidi_control(char) => self.0.push('\u{fffd}'),
                char => self.0.push(char),
            }
        }
        Ok(())
    }
}

const fn is_bidi_control(char: char) -> bool {
    matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        let mut html = Html::default();
        html.raw("<b title=\"").text("\"><script>alert('&')</script>").raw("\">").text("a\u{202e}b\0c\nd");
        let expected = "<b title=\"&quot;&gt;&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;\">a\u{fffd}b\u{fffd}c d";
        assert_eq!(html.finish(), expected);
    }

    #[test]
    fn tables_escape_their_cells_and_say_when_they_have_none() {
        let mut html = Html::default();
        html.table("c", ["h"], [["<i>".to_owned()]], "none").table("c", ["h"], [], "There are none.");
        let html = html.finish();
        assert!(html.contains(" class=\"short\">&lt;i&gt;</td>") && !html.contains("<i>"), "{html}");
        assert!(html.ends_with("<p>There are none.</p>\n"), "{html}");
    }
}
