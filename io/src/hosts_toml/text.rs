//! The text of `hosts.toml`: writing it, recognising it, and taking over the hosts of another.
//! Pure. The format is byte for byte that of the Go implementation.

use std::fmt::Write;

use toml_edit::{ArrayOfTables, Document, Item, TableLike, Value};

use super::{BasicAuth, origin::Origin};

/// How long containerd tries to connect to the mirror before it goes on: the mirror is on the same
/// node. Part of what [`is_ours`] recognises.
const DIAL_TIMEOUT: &str = "dial_timeout = '200ms'";

const PULL: &str = "capabilities = ['pull']";
const PULL_AND_RESOLVE: &str = "capabilities = ['pull', 'resolve']";

/// The file for one registry; `None` is all others, which have no one server.
pub(super) fn render(
    registry: Option<&Origin>,
    targets: &[Origin],
    resolve_tags: bool,
    auth: Option<&BasicAuth>,
) -> String {
    let capabilities = if resolve_tags { PULL_AND_RESOLVE } else { PULL };
    let mut sections = Vec::new();
    if let Some(registry) = registry {
        // Docker Hub's API is not where its images' names say.
        let server = match registry.to_string() {
            hub if hub == "https://docker.io" => "https://registry-1.docker.io".to_owned(),
            other => other,
        };
        sections.push(format!("server = '{server}'"));
    }
    for target in targets {
        let mut section = format!("[host.'{target}']\n{capabilities}\n{DIAL_TIMEOUT}");
        if let Some(auth) = auth {
            let header = auth.header();
            let _infallible = write!(section, "\n[host.'{target}'.header]\nAuthorization = '{header}'");
        }
        sections.push(section);
    }
    sections.join("\n\n")
}

/// Whether a file was written by this program, in either implementation: it begins with the block
/// above, which nobody writes by hand in just this way.
pub fn is_ours(content: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(content) else { return false };
    let mut lines = text.lines().skip_while(|line| line.is_empty() || is_server(line));
    let host = lines.next().is_some_and(|line| line.starts_with("[host.'http") && line.ends_with("']"));
    let capabilities = lines.next().is_some_and(|line| line == PULL || line == PULL_AND_RESOLVE);
    host && capabilities && lines.next() == Some(DIAL_TIMEOUT)
}

fn is_server(line: &str) -> bool {
    line.starts_with("server = 'http") && line.ends_with('\'')
}

/// The hosts that this program wrote into a file; what it kept of another's comes after them.
pub(super) fn own_hosts(content: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(content).unwrap_or_default();
    let mut lines = text.lines();
    let mut hosts = Vec::new();
    while let Some(line) = lines.next() {
        let host = line.strip_prefix("[host.'").and_then(|line| line.strip_suffix("']"));
        let Some(host) = host else { continue };
        let written = lines.next().is_some_and(|line| line == PULL || line == PULL_AND_RESOLVE)
            && lines.next() == Some(DIAL_TIMEOUT);
        if !written {
            break;
        }
        hosts.push(host.to_owned());
    }
    hosts
}

/// The hosts that a file names, in order.
pub(super) fn hosts(content: &[u8]) -> Result<Vec<String>, (usize, String)> {
    let document = parse(content)?;
    let Some(hosts) = document.get("host") else { return Ok(Vec::new()) };
    let table = hosts.as_table_like().ok_or_else(|| (1, "host is not a table".to_owned()))?;
    Ok(table.iter().map(|(name, _)| name.to_owned()).collect())
}

/// The hosts of a foreign file, in their order and our format. Its `server` and what else it says
/// about the registry itself is for ours to say, and so is what it says of our `targets`: a host
/// that is named twice keeps containerd from reading the file, and from pulling at all.
pub fn kept_hosts(content: &[u8], targets: &[String]) -> Result<String, (usize, String)> {
    let document = parse(content)?;
    let Some(hosts) = document.get("host") else { return Ok(String::new()) };
    let wrong = |what: &str| (line_at(content, position(hosts)), format!("{what} is not a table"));
    let hosts_table = hosts.as_table_like().ok_or_else(|| wrong("host"))?;
    let mut sections = Vec::new();
    for (name, host) in hosts_table.iter().filter(|(name, _)| !targets.iter().any(|target| target == name)) {
        let host = host.as_table_like().ok_or_else(|| wrong(&format!("host {name:?}")))?;
        write_table(&format!("host.{}", key(name)), host, &mut sections);
    }
    Ok(sections.join("\n\n"))
}

fn parse(content: &[u8]) -> Result<Document<&str>, (usize, String)> {
    let text = std::str::from_utf8(content)
        .map_err(|error| (line_at(content, error.valid_up_to()), "not UTF-8 text".to_owned()))?;
    Document::parse(text).map_err(|error| {
        let line = line_at(content, error.span().map_or(0, |span| span.start));
        (line, error.message().replace('\n', ", "))
    })
}

/// The line of a byte, from 1.
fn line_at(content: &[u8], offset: usize) -> usize {
    1 + content.iter().take(offset).filter(|byte| **byte == b'\n').count()
}

fn position(item: &Item) -> usize {
    item.span().map_or(0, |span| span.start)
}

/// Writes a table and those below it, each under its own header.
fn write_table(path: &str, table: &dyn TableLike, sections: &mut Vec<String>) {
    let mut entries: Vec<(&str, &Item)> = table.iter().collect();
    entries.sort_by_key(|(name, _)| *name);
    let mut section = format!("[{path}]");
    for (name, item) in &entries {
        if let Some(value) = item.as_value().filter(|value| !value.is_inline_table()) {
            let _infallible = write!(section, "\n{} = {}", key(name), text_of(value));
        } else if let Some(tables) = item.as_array_of_tables() {
            let _infallible = write!(section, "\n{} = {}", key(name), list(tables));
        }
    }
    sections.push(section);
    for (name, item) in &entries {
        if let Some(table) = item.as_table_like() {
            write_table(&format!("{path}.{}", key(name)), table, sections);
        }
    }
}

fn list(tables: &ArrayOfTables) -> String {
    format!("[{}]", tables.iter().map(|table| inline(table)).collect::<Vec<_>>().join(", "))
}

fn inline(table: &dyn TableLike) -> String {
    let mut entries: Vec<(&str, &Item)> = table.iter().collect();
    entries.sort_by_key(|(name, _)| *name);
    let entry = |(name, item): &(&str, &Item)| {
        let value = match item {
            // Only edited documents have such.
            Item::None => String::new(),
            Item::Value(value) => text_of(value),
            Item::Table(table) => inline(table),
            Item::ArrayOfTables(tables) => list(tables),
        };
        format!("{} = {value}", key(name))
    };
    format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text.value()),
        Value::Array(values) => format!("[{}]", values.iter().map(text_of).collect::<Vec<_>>().join(", ")),
        Value::InlineTable(table) => inline(table),
        Value::Integer(number) => number.value().to_string(),
        Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {
            value.clone().decorated("", "").to_string()
        }
    }
}

fn key(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.is_empty() && name.chars().all(bare) { name.to_owned() } else { quoted(name) }
}

/// Single quotes take everything as it is, except themselves and control characters.
fn quoted(text: &str) -> String {
    if !text.contains('\'') && !text.chars().any(char::is_control) {
        return format!("'{text}'");
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _infallible = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
