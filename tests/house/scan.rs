//! Reads Rust source well enough for the walls: blanks comments, literals and test code, cuts the rest
//! into tokens, and lists the paths that are named. It knows no types and expands no macros; what only
//! a macro would produce is not seen.

/// A token and the line that it stands on, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

/// A path such as `std::fs::read`, with all groups of a `use` multiplied out, and its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    pub path: Vec<String>,
    pub line: usize,
}

/// The source with comments and the insides of literals turned into blanks; lines stay lines.
fn blank_literals(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    let at_char = |index: usize| chars.get(index).copied().unwrap_or('\0');
    while at < chars.len() {
        let here = chars[at];
        let end = match (here, at_char(at + 1)) {
            ('/', '/') => (at..chars.len()).find(|&i| chars[i] == '\n').unwrap_or(chars.len()),
            ('/', '*') => {
                let (mut depth, mut i) = (1, at + 2);
                while i < chars.len() && depth > 0 {
                    match (chars[i], at_char(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                }
                i
            }
            ('"', _) => end_of_string(&chars, at + 1),
            ('r', '"' | '#') if !is_ident(at.checked_sub(1).map_or(' ', at_char)) => {
                end_of_raw_string(&chars, at + 1).unwrap_or(at)
            }
            ('b' | 'c', 'r') if !is_ident(at.checked_sub(1).map_or(' ', at_char)) => {
                end_of_raw_string(&chars, at + 2).unwrap_or(at)
            }
            // A character, not a lifetime: '\…' or 'x'.
            ('\'', '\\') => {
                (at + 3..chars.len()).find(|&i| chars[i] == '\'').map_or(chars.len(), |i| i + 1)
            }
            ('\'', _) if at_char(at + 2) == '\'' => at + 3,
            _ => at,
        };
        if end == at {
            out.push(here);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

fn end_of_string(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// The end of `#*"…"#*` that begins at `at`; nothing for a raw identifier (`r#type`).
fn end_of_raw_string(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at..].iter().take_while(|&&c| c == '#').count();
    if chars.get(at + hashes) != Some(&'"') {
        return None;
    }
    let is_end = |&i: &usize| {
        chars[i] == '"'
            && chars[i + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes
    };
    Some((at + hashes + 1..chars.len()).find(is_end).map_or(chars.len(), |i| i + 1 + hashes))
}

fn is_ident(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// All tokens: identifiers and numbers, `::`, and every other character by itself.
pub fn tokens(source: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    for (index, line) in blank_literals(source).lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = if is_ident(first) {
                rest.find(|c| !is_ident(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            tokens.push(Token { text: rest[..length].to_owned(), line: index + 1 });
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

/// The tokens without items, fields and statements under `#[cfg(test)]` or `#[test]`, and the names of
/// modules that are test code in files of their own (`#[cfg(test)] mod tests;`).
pub fn without_tests(tokens: &[Token]) -> (Vec<Token>, Vec<String>) {
    let text = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
    let (mut kept, mut test_files) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        let is_inner = text(at) == "#" && text(at + 1) == "!" && text(at + 2) == "[";
        if is_inner && is_test_attribute(&tokens[at + 3..closing(tokens, at + 2)]) {
            return (Vec::new(), test_files);
        }
        if text(at) != "#" || text(at + 1) != "[" {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let end = closing(tokens, at + 1);
        if !is_test_attribute(&tokens[at + 2..end]) {
            kept.extend_from_slice(&tokens[at..(end + 1).min(tokens.len())]);
            at = end + 1;
            continue;
        }
        let mut item = end + 1;
        while text(item) == "#" && text(item + 1) == "[" {
            item = closing(tokens, item + 1) + 1;
        }
        let end = end_of_item(tokens, item);
        let of_item: Vec<&str> = (item..end).map(text).collect();
        if let [.., "mod", name, ";"] = of_item[..] {
            test_files.push(name.to_owned());
        }
        at = end;
    }
    (kept, test_files)
}

fn is_test_attribute(inside: &[Token]) -> bool {
    let words: Vec<&str> = inside.iter().map(|token| token.text.as_str()).collect();
    matches!(
        words[..],
        ["test"]
            | ["cfg", "(", "test", ")"]
            | ["cfg", "(", "all", "(", "test", ..]
            | [.., "::", "test"]
    )
}

/// The index of the bracket that closes the one at `open`.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index;
        }
    }
    tokens.len()
}

/// The index after the item, field or statement that begins at `at`.
fn end_of_item(tokens: &[Token], mut at: usize) -> usize {
    const BY_SEMICOLON: [&str; 5] = ["use", "const", "static", "type", "let"];
    const ITEM: [&str; 10] =
        ["fn", "mod", "struct", "enum", "union", "trait", "impl", "unsafe", "async", "extern"];
    let mut first = at;
    while tokens.get(first).is_some_and(|token| token.text == "pub" || token.text == "(") {
        first = if tokens[first].text == "(" { closing(tokens, first) + 1 } else { first + 1 };
    }
    let word = tokens.get(first).map_or("", |token| token.text.as_str());
    let is_const_fn = word == "const" && tokens.get(first + 1).is_some_and(|t| t.text == "fn");
    let by_semicolon = BY_SEMICOLON.contains(&word) && !is_const_fn;
    let is_item = ITEM.contains(&word) || is_const_fn || by_semicolon;
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            ";" => return at + 1,
            "," if !is_item => return at + 1,
            "}" | ")" | "]" => return at,
            "{" if !by_semicolon => return closing(tokens, at) + 1,
            "{" | "(" | "[" => at = closing(tokens, at) + 1,
            _ => at += 1,
        }
    }
    at
}

/// Every path of two or more parts, or named by `use` or `extern crate`. `module` is where the tokens
/// stand, for example `["policy", "route"]`; `super` and `self` are resolved by it, so that every path of
/// our own begins with `crate`.
pub fn paths(tokens: &[Token], module: &[String]) -> Vec<Named> {
    let text = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let before = if at == 0 { "" } else { text(at - 1) };
        let is_used =
            before == "use" || (before == "crate" && text(at.saturating_sub(2)) == "extern");
        let starts = text(at).starts_with(is_ident_start) && !matches!(before, "::" | ".");
        if starts && !matches!(text(at), "use" | "extern") && (is_used || text(at + 1) == "::") {
            at = tree(tokens, at, &[], &mut found);
        } else if is_used && matches!(text(at), "{" | "::") {
            let from = if text(at) == "::" { at + 1 } else { at };
            at = tree(tokens, from, &[], &mut found);
        } else {
            at += 1;
        }
    }
    for named in &mut found {
        resolve(&mut named.path, module);
    }
    found
}

fn is_ident_start(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

/// Reads one path or group from `at`, below `prefix`; gives the index after it.
fn tree(tokens: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<Named>) -> usize {
    let text = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
    let mut path = prefix.to_vec();
    let line = tokens.get(at).map_or(0, |token| token.line);
    loop {
        let word = text(at);
        if word == "{" {
            at += 1;
            while at < tokens.len() && text(at) != "}" {
                let next = tree(tokens, at, &path, found);
                at = if next == at { at + 1 } else { next };
                at = if text(at) == "as" { at + 2 } else { at };
            }
            return at + 1;
        }
        if word != "*" && !word.starts_with(is_ident_start) {
            break; // `::<` of generics, or a comma
        }
        path.push(word.to_owned());
        at += 1;
        if text(at) != "::" {
            break;
        }
        at += 1;
    }
    if path.len() > prefix.len() {
        found.push(Named { path, line });
    }
    at
}

fn resolve(path: &mut Vec<String>, module: &[String]) {
    let is_self = path.first().is_some_and(|word| word == "self");
    let supers = path.iter().skip(usize::from(is_self)).take_while(|word| *word == "super").count();
    if !is_self && supers == 0 {
        return;
    }
    let rest = path.split_off(supers + usize::from(is_self));
    *path = vec!["crate".to_owned()];
    path.extend_from_slice(&module[..module.len().saturating_sub(supers)]);
    path.extend(rest);
}
