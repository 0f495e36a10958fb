//! Problems in configuration text: every one of them, each as `file:line:column`, the line, a
//! caret and a hint. A [`Report`] keeps the texts it speaks about, so that it can be printed long
//! after they were read, for people ([`std::fmt::Display`]) or for machines ([`Report::located`]).
//!
//! It relies on byte spans that point into the text it was given; a span that does not is moved to
//! the nearest place that exists. It does not read files and does not know what TOML is.

use std::{fmt, ops::Range};

use serde::Serialize;

/// Problems printed at most: more are no help.
const MAX_PRINTED: usize = 100;
/// Problems kept at most, the rest is counted: a hostile file could hold a million of them.
const MAX_KEPT: usize = 1_000;
/// Columns of a source line shown at most: what fits beside the line number in a usual terminal.
const MAX_WIDTH: usize = 100;
/// Columns kept before the caret when a long line is cut.
const LEAD: usize = 40;
/// Columns that a tab takes in the excerpt.
const TAB_WIDTH: usize = 4;
/// Longest word for which a similar one is looked for: the search takes quadratic time.
const MAX_WORD: usize = 64;

/// How much a problem matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration is not used.
    Error,
    /// The configuration is used, but is hardly what its author meant.
    Warning,
}

/// One of the texts of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(usize);

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where: the file.
    pub file: FileId,
    /// Where: the bytes of its text, or `None` for the file as a whole.
    pub span: Option<Range<usize>>,
    /// Whether it keeps the configuration from being used.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
}

impl Problem {
    /// A problem that keeps the configuration from being used.
    pub fn error(
        file: FileId,
        span: Option<Range<usize>>,
        message: String,
        hint: Option<String>,
    ) -> Self {
        let severity = Severity::Error;
        Self { file, span, severity, message, hint }
    }
}

/// A problem as machines read it (`--json`). Line and column count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Located {
    /// The name of the file, as it was shown to the user.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
    /// Whether it keeps the configuration from being used.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    name: String,
    text: String,
}

/// All problems of one or several files. Empty means that nothing is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    files: Vec<Source>,
    problems: Vec<Problem>,
    /// How many were found after [`MAX_KEPT`].
    dropped: usize,
    has_errors: bool,
}

impl Report {
    /// A report without files or problems.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps the text of a file for the excerpts; files are printed in the order they were added.
    pub fn add_file(&mut self, name: impl Into<String>, text: impl Into<String>) -> FileId {
        self.files.push(Source { name: name.into(), text: text.into() });
        FileId(self.files.len() - 1)
    }

    /// Adds a problem.
    pub fn push(&mut self, problem: Problem) {
        self.has_errors |= problem.severity == Severity::Error;
        if self.problems.len() < MAX_KEPT {
            self.problems.push(problem);
        } else {
            self.dropped += 1;
        }
    }

    /// Adds an error about a file that has no text worth showing: it cannot be read, say.
    pub fn file_error(&mut self, name: impl Into<String>, message: String, hint: Option<String>) {
        let file = self.add_file(name, "");
        self.push(Problem::error(file, None, message, hint));
    }

    /// Whether nothing at all was found.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// Whether the configuration must not be used.
    pub fn has_errors(&self) -> bool {
        self.has_errors
    }

    /// Every problem, ordered by file and place, as machines read it.
    pub fn located(&self) -> Vec<Located> {
        self.sorted()
            .into_iter()
            .map(|problem| {
                let place = self.place(problem);
                Located {
                    file: self.source(problem.file).0.to_owned(),
                    line: place.line,
                    column: place.column,
                    severity: problem.severity,
                    message: problem.message.clone(),
                    hint: problem.hint.clone(),
                }
            })
            .collect()
    }

    fn sorted(&self) -> Vec<&Problem> {
        let mut sorted: Vec<&Problem> = self.problems.iter().collect();
        // Stable: problems of one place stay in the order they were found.
        sorted.sort_by_key(|problem| (problem.file, problem.span.as_ref().map(|span| span.start)));
        sorted
    }

    fn source(&self, file: FileId) -> (&str, &str) {
        self.files.get(file.0).map_or(("", ""), |source| (&source.name, &source.text))
    }

    fn place(&self, problem: &Problem) -> Place<'_> {
        match &problem.span {
            Some(span) => Place::find(self.source(problem.file).1, span),
            None => Place::find("", &(0..0)),
        }
    }
}

impl std::error::Error for Report {}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sorted = self.sorted();
        for problem in sorted.iter().take(MAX_PRINTED) {
            let place = self.place(problem);
            let name = self.source(problem.file).0;
            let severity = match problem.severity {
                Severity::Error => "",
                Severity::Warning => "warning: ",
            };
            let (line, column) = (place.line, place.column);
            writeln!(f, "{name}:{line}:{column}: {severity}{}", problem.message)?;
            if problem.span.is_some() {
                let (text, indent, carets) = place.excerpt();
                writeln!(f, "{}", format!("{line:>5} | {text}").trim_end())?;
                writeln!(f, "{:>5} | {:indent$}{}", "", "", "^".repeat(carets))?;
            }
            if let Some(hint) = &problem.hint {
                writeln!(f, "{:>5} = hint: {hint}", "")?;
            }
        }
        match sorted.len().saturating_sub(MAX_PRINTED) + self.dropped {
            0 => Ok(()),
            more => writeln!(f, "... and {more} more"),
        }
    }
}

/// A span of one line: which line, and which bytes of it.
struct Place<'t> {
    line: usize,
    column: usize,
    text: &'t str,
    /// Characters of `text` before the span.
    before: usize,
    /// Characters of `text` in the span.
    marked: usize,
}

impl<'t> Place<'t> {
    fn find(text: &'t str, span: &Range<usize>) -> Self {
        // A byte order mark is not a character of the first line.
        let text_start = text.len() - text.trim_start_matches('\u{feff}').len();
        let start = text.floor_char_boundary(span.start).max(text_start);
        let end = text.floor_char_boundary(span.end).max(start);
        let (head, tail) = text.split_at(start);
        let line_start = head.rfind('\n').map_or(text_start, |newline| newline + 1);
        let line_end = start + tail.find('\n').unwrap_or(tail.len());
        let cut = |range: Range<usize>| text.get(range).unwrap_or_default();
        let line = cut(line_start..line_end);
        let line = line.strip_suffix('\r').unwrap_or(line);
        let before = cut(line_start..start).chars().count();
        Self {
            line: 1 + head.matches('\n').count(),
            column: 1 + before,
            text: line,
            before,
            marked: cut(start..end.min(line_end)).chars().count(),
        }
    }

    /// The line as it can be shown, the columns before the carets, and how many carets.
    fn excerpt(&self) -> (String, usize, usize) {
        let shown: Vec<(char, usize)> = self.text.chars().map(shown).collect();
        let width = |from: usize, to: usize| -> usize {
            shown.iter().take(to).skip(from).map(|(_, width)| width).sum()
        };
        let (mut from, mut to) = (0, shown.len());
        if width(0, to) > MAX_WIDTH {
            let mut lead = 0;
            let fits = |limit: usize, used: &mut usize, width: usize| {
                *used += width;
                *used <= limit
            };
            let kept = shown.iter().take(self.before).rev();
            from = self.before - kept.take_while(|(_, w)| fits(LEAD, &mut lead, *w)).count();
            let mut used = 0;
            let kept = shown.iter().skip(from);
            to = from + kept.take_while(|(_, w)| fits(MAX_WIDTH, &mut used, *w)).count();
        }
        let mut text = String::new();
        if from > 0 {
            text.push('…');
        }
        for (c, width) in shown.iter().take(to).skip(from) {
            // Only a blank, which may stand for a tab, is as many characters as columns.
            let times = if *c == ' ' { *width } else { 1 };
            text.extend(std::iter::repeat_n(*c, times));
        }
        if to < shown.len() {
            text.push('…');
        }
        let indent = width(from, self.before.min(to)) + usize::from(from > 0);
        let carets = width(self.before, (self.before + self.marked).min(to)).max(1);
        (text, indent, carets)
    }
}

/// How a character appears in an excerpt, and how many columns it takes. What could move the
/// cursor or colour the terminal is replaced: the text may come from someone else.
fn shown(c: char) -> (char, usize) {
    match c {
        '\t' => (' ', TAB_WIDTH),
        c if c.is_control() => ('\u{fffd}', 1),
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => {
            ('\u{fffd}', 1)
        }
        '\u{0300}'..='\u{036f}' | '\u{20d0}'..='\u{20ff}' | '\u{fe00}'..='\u{fe0f}' => (c, 0),
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{ffe0}'..='\u{ffe6}'
        | '\u{1f300}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}' => (c, 2),
        c => (c, 1),
    }
}

/// The candidate that the word was probably meant to be: a third of its letters may be wrong,
/// missing, too many or swapped with their neighbour.
pub fn did_you_mean<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    let letters =
        |text: &str| -> Vec<char> { text.to_ascii_lowercase().replace('-', "_").chars().collect() };
    let word = letters(word);
    if word.len() > MAX_WORD {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, &letters(candidate)), candidate))
        .filter(|(distance, candidate)| {
            let length = candidate.chars().count().max(word.len());
            *distance <= (length / 3).max(1) && *distance < candidate.chars().count()
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edit distance in which swapping two neighbours is one edit (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
    let mut two_back: Vec<usize> = Vec::new();
    let mut back: Vec<usize> = (0..=b.len()).collect();
    let mut previous_a = None;
    for (i, ca) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        let mut previous_b = None;
        for (j, cb) in b.iter().enumerate() {
            let mut best = (at(&back, j) + usize::from(ca != cb))
                .min(at(&back, j + 1) + 1)
                .min(at(&row, j) + 1);
            if j > 0 && previous_a == Some(cb) && previous_b == Some(ca) {
                best = best.min(at(&two_back, j - 1) + 1);
            }
            row.push(best);
            previous_b = Some(cb);
        }
        two_back = std::mem::replace(&mut back, row);
        previous_a = Some(ca);
    }
    at(&back, b.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str, span: Range<usize>) -> Report {
        let mut report = Report::new();
        let file = report.add_file("f.toml", text);
        report.push(Problem::error(file, Some(span), "wrong".into(), None));
        report
    }

    /// The place, the line and the carets, as `1:5 | a = x |     ^`.
    fn check(text: &str, span: Range<usize>, expected: &str) {
        let printed = wrong(text, span).to_string();
        let printed = printed.replace("f.toml:", "").replace(": wrong\n    ", "");
        let (place, rest) = printed.split_at(3);
        let rest = rest.get(1..).unwrap().replace("\n      |", " |");
        assert_eq!(format!("{place}{rest}"), format!("{expected}\n"), "{text:?}");
    }

    #[test]
    fn the_caret_stands_under_the_span() {
        check("a = 1\nbb = 2\n", 6..8, "2:1 | bb = 2 | ^^");
        // Columns are characters, carets are terminal columns.
        check("ä = x", 5..6, "1:5 | ä = x |     ^");
        check("\"日本\" = x", 11..12, "1:8 | \"日本\" = x |          ^");
        check("\ta = x", 5..6, "1:6 |     a = x |         ^");
        check("a\u{301} = x", 6..7, "1:6 | a\u{301} = x |     ^");
        // A span inside a character begins with that character.
        check("ä", 1..2, "1:1 | ä | ^");
        check("\u{feff}a = x", 3..4, "1:1 | a = x | ^");
        check("a = x\r\nb = y\r\n", 4..9, "1:5 | a = x |     ^");
        // At the end of the file, with and without a last newline, and beyond it.
        check("a = ", 4..4, "1:5 | a = |     ^");
        check("a\n", 2..2, "2:1 | | ^");
        check("", 0..0, "1:1 | | ^");
        check("a\n", 90..99, "2:1 | | ^");
        // Several lines: the first of them.
        check("a = [\n1\n]", 4..9, "1:5 | a = [ |     ^");
        // What would steer the terminal is not printed.
        check("a\u{1b}[31m", 0..1, "1:1 | a\u{fffd}[31m | ^");
    }

    #[test]
    fn a_long_line_is_cut_around_the_span() {
        let long = format!("{} = bad", "x".repeat(300));
        let (kept, indent) = ("x".repeat(LEAD - 3), " ".repeat(LEAD + 1));
        let expected = format!("f.toml:1:304: wrong\n    1 | …{kept} = bad\n      | {indent}^^^\n");
        assert_eq!(wrong(&long, 303..306).to_string(), expected);
        let (kept, carets) = ("x".repeat(MAX_WIDTH), "^".repeat(MAX_WIDTH));
        let expected = format!("f.toml:1:1: wrong\n    1 | {kept}…\n      | {carets}\n");
        assert_eq!(wrong(&long, 0..300).to_string(), expected);
    }

    #[test]
    fn no_span_makes_it_panic() {
        let text = "ä\t=\r\n日\u{301}\n\u{1b}";
        for start in 0..text.len() + 3 {
            for end in 0..text.len() + 3 {
                assert!(!wrong(text, Range { start, end }).to_string().is_empty());
            }
        }
    }

    #[test]
    fn all_problems_are_printed_by_file_and_place() {
        let mut report = Report::new();
        assert!(report.is_empty() && !report.has_errors());
        let a = report.add_file("a.toml", "x\ny\n");
        let b = report.add_file("b.toml", "z\n");
        let problem = |file, start: usize, message: &str, hint: Option<&str>| {
            let span = Some(start..start + 1);
            Problem::error(file, span, message.into(), hint.map(str::to_owned))
        };
        let severity = Severity::Warning;
        report.push(Problem { severity, ..problem(b, 0, "third", None) });
        assert!(!report.is_empty() && !report.has_errors());
        report.push(problem(a, 2, "second", Some("do it right")));
        report.push(problem(a, 0, "first", None));
        report.file_error("c.toml", "fourth".into(), Some("make it".into()));
        assert!(report.has_errors());
        assert_eq!(
            report.to_string(),
            "a.toml:1:1: first\n    1 | x\n      | ^\n\
             a.toml:2:1: second\n    2 | y\n      | ^\n      = hint: do it right\n\
             b.toml:1:1: warning: third\n    1 | z\n      | ^\n\
             c.toml:1:1: fourth\n      = hint: make it\n"
        );
        let json = serde_json::to_value(report.located()).unwrap();
        assert_eq!(
            json[1],
            serde_json::json!({"file": "a.toml", "line": 2, "column": 1, "severity": "error",
                "message": "second", "hint": "do it right"})
        );
    }

    #[test]
    fn a_flood_of_problems_is_cut_and_counted() {
        let mut report = Report::new();
        for _ in 0..MAX_KEPT + 7 {
            report.file_error("f", "wrong".into(), None);
        }
        assert!(report.to_string().ends_with("wrong\n... and 907 more\n"));
        assert_eq!(report.located().len(), MAX_KEPT);
    }

    #[test]
    fn a_similar_word_is_found_and_a_different_one_is_not() {
        let known = ["memory", "cpu", "pids", "park_after", "timeout"];
        for (word, expected) in [
            ("memroy", Some("memory")),
            ("Memory", Some("memory")),
            ("cp", Some("cpu")),
            ("park-after", Some("park_after")),
            ("timout", Some("timeout")),
            ("colour", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(did_you_mean(word, known), expected, "{word}");
        }
        assert_eq!(did_you_mean(&"m".repeat(1 << 20), known), None);
    }
}
