//! A cursor over a TOML table that reports instead of failing: each method reads one key, marks it
//! as known, and answers `None` when the key is absent or wrong (the report then says why), so that
//! a reader can go on and find every problem at once. `config` and `policy` are written with it.
//!
//! It relies on `toml` to recover from syntax errors. What it says about a line that has one, and
//! about keys that may only seem to be missing or misplaced because of one, is left out.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::Display,
    ops::{Range, RangeInclusive},
    str::FromStr,
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    model::{Bytes, InvalidName, format_duration, parse_duration},
    report::{FileId, Problem, Report, did_you_mean},
};

/// Syntax errors of one file that are looked at; with more of them it is no TOML at all.
const MAX_SYNTAX_ERRORS: usize = 100;

/// Where something is in a file, in bytes.
pub(crate) type Span = Range<usize>;

/// Reads a whole file: `body` reads its keys, and the rest of them is reported as unknown. `None`
/// when there was any error, so that no value ever leaves that a report does not stand behind.
pub(crate) fn read<T>(
    file: &str,
    text: &str,
    report: &mut Report,
    body: impl for<'t> FnOnce(&mut Table<'t>) -> Option<T>,
) -> Option<T> {
    let file = report.add_file(file, text);
    let (tree, syntax) = DeTable::parse_recoverable(text);
    let mut context = Context {
        text,
        file,
        broken_lines: BTreeMap::new(),
        broken_header: false,
        failed: Cell::new(false),
        report: RefCell::new(report),
    };
    for error in syntax.iter().take(MAX_SYNTAX_ERRORS) {
        context.syntax_error(error);
    }
    if syntax.len() > MAX_SYNTAX_ERRORS {
        return None;
    }
    let mut root = Table {
        context: &context,
        entries: Some(tree.get_ref()),
        name: String::new(),
        span: None,
        known: Vec::new(),
    };
    let value = body(&mut root);
    root.finish();
    value.filter(|_| !context.failed.get())
}

struct Context<'t> {
    text: &'t str,
    file: FileId,
    /// The lines with syntax errors: where each begins, and where it ends.
    broken_lines: BTreeMap<usize, usize>,
    /// A `[header]` is broken: the keys below it ended up in another table.
    broken_header: bool,
    failed: Cell<bool>,
    report: RefCell<&'t mut Report>,
}

impl Context<'_> {
    fn syntax_error(&mut self, error: &toml::de::Error) {
        let span = error.span().unwrap_or(0..0);
        let at = self.text.floor_char_boundary(span.start);
        let (head, tail) = self.text.split_at(at);
        let line_start = head.rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = at + tail.find('\n').unwrap_or(tail.len());
        let line = self.text.get(line_start..line_end).unwrap_or_default();
        self.broken_header |= line.trim_start().starts_with('[');
        self.broken_lines.insert(line_start, line_end);
        let (message, hint) = match self.text.get(span.clone()) {
            // What `toml` says about these speaks of its grammar, not of what the user did.
            Some("") if error.message().starts_with("string values must be quoted") => {
                ("the value is missing".to_owned(), None)
            }
            Some(word) if error.message().starts_with("string values must be quoted") => {
                ("a text must be quoted".to_owned(), Some(format!("write {word:?}")))
            }
            _ => (error.message().to_owned(), None),
        };
        self.push(Some(span), message, hint);
    }

    fn push(&self, span: Option<Span>, message: String, hint: Option<String>) {
        self.failed.set(true);
        let problem = Problem::error(self.file, span, message, hint);
        self.report.borrow_mut().push(problem);
    }

    fn is_broken(&self, at: usize) -> bool {
        self.broken_lines.range(..=at).next_back().is_some_and(|(_, end)| at <= *end)
    }
}

/// A text value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Text<'t> {
    pub text: &'t str,
    pub span: Span,
}

/// One table of the file; an absent one reads as empty.
pub(crate) struct Table<'t> {
    context: &'t Context<'t>,
    entries: Option<&'t DeTable<'t>>,
    /// As its header has it: `route.answer`.
    name: String,
    /// Its header; `None` for the file itself and for an absent table.
    span: Option<Span>,
    known: Vec<&'static str>,
}

type Value<'t> = Spanned<DeValue<'t>>;

impl<'t> Table<'t> {
    /// Whether the key is there, right or wrong.
    pub fn has(&mut self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// The file that it is in.
    pub fn file(&self) -> FileId {
        self.context.file
    }

    /// Where its header stands.
    pub fn span(&self) -> Option<Span> {
        self.span.clone()
    }

    /// Where the value of a key stands; the table's header when it has none.
    pub fn span_of(&self, key: &str) -> Option<Span> {
        self.entries
            .and_then(|entries| entries.get(key))
            .map(Spanned::span)
            .or_else(|| self.span.clone())
    }

    /// Where the key itself stands; for `[a.b]` that is `b`.
    pub fn key_span(&self, key: &str) -> Option<Span> {
        let (key, _) = self.entries?.get_key_value(key)?;
        Some(key.span())
    }

    /// Reports an error at a place, without a hint.
    pub fn error(&self, span: Option<Span>, message: impl Into<String>) {
        self.problem(span, message.into(), None);
    }

    /// Reports an error at a place, with a hint.
    pub fn error_hint(
        &self,
        span: Option<Span>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.problem(span, message.into(), Some(hint.into()));
    }

    fn problem(&self, span: Option<Span>, message: String, hint: Option<String>) {
        if !span.as_ref().is_some_and(|span| self.context.is_broken(span.start)) {
            self.context.push(span, message, hint);
        }
    }

    /// Reports the key as missing unless it is there.
    pub fn require(&mut self, key: &'static str, hint: &str) {
        // After a syntax error it may well be there, only not understood.
        // And what should be a table and is not has been reported as that.
        let is_wrong = self.entries.is_none() && self.span.is_some();
        if !self.has(key) && !is_wrong && self.context.broken_lines.is_empty() {
            self.error_hint(self.span.clone(), format!("missing key {key:?}"), hint);
        }
    }

    /// The value as TOML has it, for values of more than one type.
    pub fn value(&mut self, key: &'static str) -> Option<&'t Value<'t>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.entries?.get(key)
    }

    /// A text. It never holds a NUL: nothing behind this (paths, arguments, headers) could keep it.
    pub fn text(&mut self, key: &'static str) -> Option<Text<'t>> {
        let value = self.value(key)?;
        self.text_of(value)
    }

    fn text_of(&self, value: &'t Value<'t>) -> Option<Text<'t>> {
        let span = value.span();
        let Some(text) = value.get_ref().as_str() else {
            let hint = match value.get_ref() {
                DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) => self
                    .context
                    .text
                    .get(span)
                    .map(|written| format!("put it in quotes: \"{written}\"")),
                _ => None,
            };
            self.mismatch(value, "a string", hint);
            return None;
        };
        if text.contains('\0') {
            self.error(Some(span), "a NUL character is not allowed");
            return None;
        }
        Some(Text { text, span })
    }

    /// Reports that a value has another type than the expected one.
    pub fn mismatch(&self, value: &Value<'_>, expected: &str, hint: Option<String>) {
        let found = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        let message = format!("expected {expected}, found {found}");
        self.problem(Some(value.span()), message, hint);
    }

    /// A name with the rules of `T`.
    pub fn name<T: FromStr<Err = InvalidName>>(&mut self, key: &'static str) -> Option<T> {
        let Text { text, span } = self.text(key)?;
        let report = |error| self.error(Some(span), format!("bad name {text:?}: {error}"));
        text.parse().map_err(report).ok()
    }

    /// A time such as `"30s"`.
    pub fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let value = self.value(key)?;
        if value.get_ref().is_integer() {
            let hint = "write it with its unit, such as \"30s\"".to_owned();
            self.mismatch(value, "a duration", Some(hint));
            return None;
        }
        let Text { text, span } = self.text_of(value)?;
        match parse_duration(text) {
            Ok(duration) => {
                self.ranged(span, duration, &range, |duration| format_duration(*duration))
            }
            Err(error) => {
                let hint = "such as \"250ms\", \"30s\", \"5m\" or \"2h\"";
                self.error_hint(Some(span), format!("bad duration {text:?}: {error}"), hint);
                None
            }
        }
    }

    /// A size such as `"64MiB"`.
    pub fn bytes(&mut self, key: &'static str, range: RangeInclusive<Bytes>) -> Option<Bytes> {
        let value = self.value(key)?;
        if value.get_ref().is_integer() {
            let hint = "write it with its unit, such as \"64MiB\"".to_owned();
            self.mismatch(value, "a size", Some(hint));
            return None;
        }
        let Text { text, span } = self.text_of(value)?;
        match text.parse::<Bytes>() {
            Ok(bytes) => self.ranged(span, bytes, &range, ToString::to_string),
            Err(error) => {
                let hint = "such as \"512KiB\", \"64MiB\" or \"2GiB\"";
                self.error_hint(Some(span), format!("bad size {text:?}: {error}"), hint);
                None
            }
        }
    }

    /// A whole number.
    pub fn integer<T>(&mut self, key: &'static str, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        let value = self.value(key)?;
        let Some(integer) = value.get_ref().as_integer() else {
            let unquoted = value.get_ref().as_str().filter(|text| text.parse::<i64>().is_ok());
            let hint = unquoted.map(|text| format!("write it without quotes: {text}"));
            self.mismatch(value, "an integer", hint);
            return None;
        };
        // A number beyond `T`, even beyond `i128`, is out of any range of `T`.
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.and_then(|number| T::try_from(number).ok());
        match number.filter(|number| range.contains(number)) {
            Some(number) => Some(number),
            None => {
                let (low, high) = (range.start(), range.end());
                let message = format!("{integer} is not between {low} and {high}");
                self.error(Some(value.span()), message);
                None
            }
        }
    }

    fn ranged<T: PartialOrd>(
        &self,
        span: Span,
        value: T,
        range: &RangeInclusive<T>,
        show: impl Fn(&T) -> String,
    ) -> Option<T> {
        if range.contains(&value) {
            return Some(value);
        }
        let (value, low, high) = (show(&value), show(range.start()), show(range.end()));
        self.error(Some(span), format!("{value} is not between {low} and {high}"));
        None
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        if value.get_ref().as_bool().is_none() {
            let word = value.get_ref().as_str().filter(|text| matches!(*text, "true" | "false"));
            let hint = word.map(|word| format!("write it without quotes: {word}"));
            self.mismatch(value, "true or false", hint);
        }
        value.get_ref().as_bool()
    }

    /// One of several words, each with what it stands for.
    pub fn choice<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let Text { text, span } = self.text(key)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let hint = suggest(text, &names, "one of: ");
            self.error_hint(Some(span), format!("unknown value {text:?}"), hint);
        }
        found
    }

    /// An array of texts; the wrong ones are reported and left out.
    pub fn texts(&mut self, key: &'static str) -> Option<Vec<Text<'t>>> {
        let value = self.value(key)?;
        let Some(array) = value.get_ref().as_array() else {
            let written = self.context.text.get(value.span());
            let written = written.filter(|_| value.get_ref().is_str());
            let hint = written.map(|written| format!("put it in brackets: [{written}]"));
            self.mismatch(value, "an array of strings", hint);
            return None;
        };
        Some(array.iter().filter_map(|item| self.text_of(item)).collect())
    }

    /// All keys of this table with their texts; none of them is unknown.
    pub fn pairs(&mut self) -> Vec<(Text<'t>, Text<'t>)> {
        let entries = self.entries.take().into_iter().flatten();
        let pair = |(key, value): (&'t Spanned<_>, &'t Value<'t>)| {
            let key = Text { text: AsRef::<str>::as_ref(key.get_ref()), span: key.span() };
            Some((key, self.text_of(value)?))
        };
        entries.filter_map(pair).collect()
    }

    /// A table; an absent or wrong one reads as empty.
    pub fn table(&mut self, key: &'static str) -> Table<'t> {
        let value = self.value(key);
        let name = self.name_of(key);
        let entries = value.and_then(|value| {
            if !value.get_ref().is_table() {
                self.mismatch(value, "a table", Some(format!("begin it with [{name}]")));
            }
            value.get_ref().as_table()
        });
        let span = value.map(Spanned::span);
        Table { context: self.context, entries, name, span, known: Vec::new() }
    }

    fn name_of(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// An array of tables, as `[[key]]` makes it.
    pub fn tables(&mut self, key: &'static str) -> Vec<Table<'t>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let name = self.name_of(key);
        let hint = || Some(format!("begin each with [[{name}]]"));
        let Some(array) = value.get_ref().as_array() else {
            self.mismatch(value, "an array of tables", hint());
            return Vec::new();
        };
        let table = |item: &'t Value<'t>| {
            if !item.get_ref().is_table() {
                self.mismatch(item, "a table", hint());
            }
            let entries = Some(item.get_ref().as_table()?);
            let span = Some(item.span());
            let (context, name) = (self.context, name.clone());
            Some(Table { context, entries, name, span, known: Vec::new() })
        };
        array.iter().filter_map(table).collect()
    }

    /// Reports every key that nobody has read.
    pub fn finish(self) {
        let unknown = |key: &str| !self.context.broken_header && !self.known.contains(&key);
        for (key, _) in self.entries.into_iter().flatten() {
            let name: &str = key.get_ref();
            if unknown(name) {
                let hint = suggest(name, &self.known, "known keys: ");
                self.error_hint(Some(key.span()), format!("unknown key {name:?}"), hint);
            }
        }
    }
}

/// The word that was probably meant, or all of them.
fn suggest(word: &str, known: &[&str], all: &str) -> String {
    match did_you_mean(word, known.iter().copied()) {
        Some(similar) => format!("did you mean {similar:?}?"),
        None => format!("{all}{}", known.join(", ")),
    }
}
