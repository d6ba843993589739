//! Markup: what is foreign is escaped, and a picture has a title and a description for whoever cannot see it.

use std::fmt::Write;

/// Text as markup. Control characters, which markup cannot hold, are replaced.
#[must_use]
pub fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\u{FFFE}' | '\u{FFFF}' => out.push('\u{FFFD}'),
            c if c.is_control() && c != '\n' => out.push('\u{FFFD}'),
            c => out.push(c),
        }
        out
    })
}

/// Which end of a text stands at its place.
#[derive(Clone, Copy, Debug)]
pub enum Anchor {
    /// Its beginning.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

/// A picture under way. Looks come from the page's style sheet, by class.
#[derive(Debug)]
pub struct Svg {
    width: f64,
    height: f64,
    body: String,
}

impl Svg {
    /// An empty one of that size.
    #[must_use]
    pub fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    /// A line.
    pub fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let _ = write!(self.body, r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#);
    }

    /// A rectangle with round corners; nothing if it has no extent.
    pub fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) {
        if width > 0.0 && height > 0.0 {
            let size = format!(r#"width="{width:.1}" height="{height:.1}""#);
            let _ = write!(self.body, r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" {size} rx="2"/>"#);
        }
    }

    /// A dot.
    pub fn dot(&mut self, class: &str, (x, y): (f64, f64), radius: f64) {
        let _ = write!(self.body, r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="{radius:.1}"/>"#);
    }

    /// A path from point to point; closed with a `Z` of the caller's.
    pub fn path(&mut self, class: &str, points: &[(f64, f64)], end: &str) {
        let mut d = String::new();
        for (at, (x, y)) in points.iter().enumerate() {
            let _ = write!(d, "{}{x:.1} {y:.1}", if at == 0 { 'M' } else { 'L' });
        }
        let _ = write!(self.body, r#"<path class="{class}" d="{d}{end}"/>"#);
    }

    /// Words.
    pub fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let (text, place) = (escape(text), format!(r#"x="{x:.1}" y="{y:.1}""#));
        let _ = write!(self.body, r#"<text class="{class}" {place} text-anchor="{anchor}">{text}</text>"#);
    }

    /// All of it; `id` is a number that no other picture of the page has.
    #[must_use]
    pub fn finish(self, id: usize, title: &str, description: &str) -> String {
        let Self { width, height, body } = self;
        let (title, description) = (escape(title), escape(description));
        format!(
            r#"<svg viewBox="0 0 {width:.0} {height:.0}" role="img" aria-labelledby="t{id} d{id}"><title id="t{id}">{title}</title><desc id="d{id}">{description}</desc>{body}</svg>"#
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_foreign_stays_text() {
        assert_eq!(escape("<b a=\"1\" b='2'>&\u{0}"), "&lt;b a=&quot;1&quot; b=&#39;2&#39;&gt;&amp;\u{FFFD}");
        let mut svg = Svg::new(10.0, 10.0);
        svg.text("label", (0.0, 0.0), Anchor::Start, "<script>");
        svg.rect("bar", (0.0, 0.0), (0.0, 5.0));
        let text = svg.finish(1, "a & b", "<desc>");
        assert!(text.contains("&lt;script&gt;") && text.contains("a &amp; b") && !text.contains("<rect"), "{text}");
    }
}
