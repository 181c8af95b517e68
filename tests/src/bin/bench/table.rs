//! The report: sections of Markdown tables, printed as they come and written to a file at the end.

use std::fmt::Write;

/// What is printed and written.
#[derive(Debug, Default)]
pub(crate) struct Report {
    text: String,
}

impl Report {
    /// Text as it stands, a paragraph of its own.
    pub(crate) fn say(&mut self, text: &str) {
        println!("{text}\n");
        self.text += text;
        self.text += "\n\n";
    }

    /// A table under a heading.
    pub(crate) fn table(&mut self, heading: &str, columns: &[&str], rows: &[Vec<String>]) {
        let mut text = format!("## {heading}\n\n| {} |\n|{}\n", columns.join(" | "), " --- |".repeat(columns.len()));
        for row in rows {
            // A String takes all.
            let _infallible = writeln!(text, "| {} |", row.join(" | "));
        }
        self.say(text.trim_end());
    }

    /// Everything so far.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// The least, the median and the greatest of some figures, with so many digits after the point.
pub(crate) fn spread(figures: &[f64], digits: usize) -> [String; 3] {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).map_or_else(|| "–".to_owned(), |figure| format!("{figure:.digits$}"));
    [at(0), at(sorted.len() / 2), at(sorted.len().saturating_sub(1))]
}

/// The median of some figures; NaN of none.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
