//! The file with local rules:
//!
//! ```toml
//! [groups]
//! staff = ["alice@example.com", "*@staff.example.com"]
//!
//! [[rule]]
//! name = "wiki"
//! decision = "allow"                  # allow, deny or anonymous
//! who = ["group:staff", "tag:ci"]     # any one of these; see `Selector`
//! hosts = ["wiki.example.com"]        # if absent: any
//! paths = ["/"]                       # a path and everything below it; if absent: any
//! methods = ["GET", "POST"]           # if absent: any
//! foreign = false                     # true: only callers of other tailnets
//! tailnet = "tailnet-x.ts.net"        # the caller's
//! grant = { capability = "example.com/cap/wiki", has = { role = "reader" } }
//! ```
//!
//! All mistakes are found in one pass, each with its line and field. An empty list is a mistake,
//! because it could mean "nobody" as well as "anybody".

use std::{collections::BTreeMap, fmt, ops::Range};

use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use super::{Effect, Rule, Scope, Selector, grant::Condition};
use tailbone_values::printable;

/// One mistake in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    pub line: usize,
    /// The position in the file, such as `rule[2].paths`.
    pub field: String,
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            line,
            field,
            message,
        } = self;
        let message = printable(message);
        if field.is_empty() {
            write!(f, "line {line}: {message}")
        } else {
            // The field may contain a key of the file, with any characters.
            write!(f, "line {line}: {}: {message}", printable(field))
        }
    }
}

/// All mistakes in a file, in their order there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, mistake) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

const TOP: [&str; 3] = ["groups", "rule", "version"];
const RULE: [&str; 6] = ["decision", "foreign", "grant", "name", "tailnet", "who"];
const GRANT: [&str; 2] = ["capability", "has"];

/// One value of the file, with its place.
pub type Node<'i> = Spanned<DeValue<'i>>;
pub(super) type Groups = BTreeMap<String, Vec<Selector>>;

/// The rules of a file, its groups, and what it says beside them.
type Contents<S> = (Vec<Rule<S>>, Groups, <S as Scope>::Top);

pub(super) fn parse<S: Scope>(text: &str) -> Result<Contents<S>, Mistakes> {
    let mut reader = RuleReader {
        text,
        mistakes: Vec::new(),
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let at = error.span().unwrap_or(0..0);
        reader.mistake(&at, "", error.message());
    }
    // After a syntax error the parser's tree is a guess, which would produce false mistakes.
    let contents = if reader.mistakes.is_empty() {
        let top = S::of_top(&mut reader, table.get_ref());
        let (rules, groups) = reader.file(table.get_ref());
        (rules, groups, top)
    } else {
        (Vec::new(), Groups::new(), S::Top::default())
    };
    let mut mistakes = reader.mistakes;
    if mistakes.is_empty() {
        return Ok(contents);
    }
    mistakes.sort_by_key(|mistake| mistake.line);
    Err(Mistakes(mistakes))
}

/// Reads a file, and collects its mistakes.
#[derive(Debug)]
pub struct RuleReader<'i> {
    text: &'i str,
    mistakes: Vec<Mistake>,
}

impl RuleReader<'_> {
    fn file<S: Scope>(&mut self, table: &DeTable<'_>) -> (Vec<Rule<S>>, Groups) {
        self.known_keys(table, "", &[&TOP, S::TOP_KEYS].concat());
        if let Some(version) = table.get("version") {
            let one = version
                .get_ref()
                .as_integer()
                .is_some_and(|number| number.as_str() == "1");
            if !one {
                self.mistake(&version.span(), "version", "only version 1 is known");
            }
        }
        let groups = match table.get("groups") {
            Some(node) => self.groups(node),
            None => Groups::new(),
        };
        let mut rules: Vec<Rule<S>> = Vec::new();
        let Some(node) = table.get("rule") else {
            return (rules, groups);
        };
        let Some(list) = node.get_ref().as_array() else {
            self.mistake(
                &node.span(),
                "rule",
                "write each rule under a [[rule]] of its own",
            );
            return (rules, groups);
        };
        for (at, node) in list.iter().enumerate() {
            let field = format!("rule[{}]", at + 1);
            let Some(table) = node.get_ref().as_table() else {
                self.mistake(
                    &node.span(),
                    &field,
                    "write each rule under a [[rule]] of its own",
                );
                continue;
            };
            let rule = self.rule(table, &node.span(), &field, at + 1, &groups);
            if let Some(before) = rules.iter().find(|before| before.name == rule.name) {
                let words = format!(
                    "{:?} is the name of the rule in line {} already",
                    rule.name, before.line
                );
                self.mistake(&node.span(), &format!("{field}.name"), words);
            }
            rules.push(rule);
        }
        (rules, groups)
    }

    fn groups(&mut self, node: &Node<'_>) -> Groups {
        let Some(table) = node.get_ref().as_table() else {
            self.mistake(&node.span(), "groups", "must be a table of lists");
            return Groups::new();
        };
        let mut groups = Groups::new();
        for (name, members) in table {
            let field = format!("groups.{}", name.get_ref());
            let words = self.words(members, &field);
            let members =
                words
                    .into_iter()
                    .filter_map(|(span, word)| match Selector::parse(&word) {
                        Ok(_) if table.contains_key(word.as_str()) => {
                            self.mistake(&span, &field, group_or_login(&word));
                            None
                        }
                        Ok(Selector::User(_) | Selector::Domain(_) | Selector::Tag(_)) => {
                            Selector::parse(&word).ok()
                        }
                        Ok(_) => {
                            self.mistake(
                            &span,
                            &field,
                            format!(
                                "{word:?} cannot be a member: groups hold users, *@domain and tags"
                            ),
                        );
                            None
                        }
                        Err(message) => {
                            self.mistake(&span, &field, message);
                            None
                        }
                    });
            let members = members.collect();
            groups.insert(name.get_ref().to_string(), members);
        }
        groups
    }

    fn rule<S: Scope>(
        &mut self,
        table: &DeTable<'_>,
        span: &Range<usize>,
        field: &str,
        number: usize,
        groups: &Groups,
    ) -> Rule<S> {
        self.known_keys(table, field, &[&RULE, S::KEYS].concat());
        let at = |key: &str| format!("{field}.{key}");
        let name = self.text_of(table, "name", field).map(|(_, name)| name);
        let effect = self.effect(table, span, field, S::EFFECTS);
        let who = match table.get("who") {
            Some(node) => self.who(node, &at("who"), groups, effect),
            None => Vec::new(),
        };
        Rule {
            name: name.unwrap_or_else(|| number.to_string()),
            line: self.line(span.start),
            effect,
            who,
            foreign: self.boolean(table, "foreign", field),
            tailnet: self.text_of(table, "tailnet", field).map(|(_, text)| text),
            grant: table
                .get("grant")
                .and_then(|node| self.grant(node, &at("grant"))),
            scope: S::of_rule(self, table, field),
        }
    }

    fn effect(
        &mut self,
        table: &DeTable<'_>,
        span: &Range<usize>,
        rule: &str,
        known: &[Effect],
    ) -> Effect {
        let field = format!("{rule}.decision");
        let words = match known {
            [first @ .., last] => {
                let first: Vec<&str> = first.iter().map(|effect| effect.as_str()).collect();
                format!("{} or {}", first.join(", "), last.as_str())
            }
            [] => String::new(),
        };
        if !table.contains_key("decision") {
            self.mistake(span, &field, format!("is missing: {words}"));
        }
        let Some((span, word)) = self.text_of(table, "decision", rule) else {
            return Effect::Deny;
        };
        if let Some(effect) = known.iter().find(|effect| effect.as_str() == word) {
            return *effect;
        }
        self.mistake(&span, &field, format!("{word:?} is not {words}"));
        Effect::Deny
    }

    fn who(
        &mut self,
        node: &Node<'_>,
        field: &str,
        groups: &Groups,
        effect: Effect,
    ) -> Vec<Selector> {
        let mut who = Vec::new();
        for (span, word) in self.words(node, field) {
            if let Some(group) = word.strip_prefix("group:") {
                match groups.get(group) {
                    Some(members) => who.extend(members.iter().cloned()),
                    None => {
                        let near = nearest(group, groups.keys().map(String::as_str));
                        self.mistake(
                            &span,
                            field,
                            format!("there is no group {group:?} under [groups]{near}"),
                        );
                    }
                }
                continue;
            }
            if groups.contains_key(&word) {
                self.mistake(&span, field, group_or_login(&word));
                continue;
            }
            match Selector::parse(&word) {
                Ok(Selector::Anyone | Selector::Funnel) if effect == Effect::Allow => self.mistake(
                    &span,
                    field,
                    format!("{word:?} has no identity to allow: use decision = \"anonymous\""),
                ),
                Ok(selector) => who.push(selector),
                Err(message) => self.mistake(&span, field, message),
            }
        }
        who
    }

    fn grant(&mut self, node: &Node<'_>, field: &str) -> Option<Condition> {
        if let Some(capability) = node.get_ref().as_str() {
            return Some(Condition {
                capability: capability.to_owned(),
                has: serde_json::Map::new(),
            });
        }
        let Some(table) = node.get_ref().as_table() else {
            self.mistake(
                &node.span(),
                field,
                "is a capability, or { capability = …, has = { … } }",
            );
            return None;
        };
        self.known_keys(table, field, &GRANT);
        let capability = self.text_of(table, "capability", field);
        if !table.contains_key("capability") {
            self.mistake(&node.span(), &format!("{field}.capability"), "is missing");
        }
        let mut has = serde_json::Map::new();
        if let Some(node) = table.get("has") {
            let field = format!("{field}.has");
            match node.get_ref().as_table() {
                Some(members) => {
                    for (name, value) in members {
                        let json = self.json(value, &format!("{field}.{}", name.get_ref()));
                        has.insert(name.get_ref().to_string(), json);
                    }
                }
                None => self.mistake(
                    &node.span(),
                    &field,
                    "is a table of members and their values",
                ),
            }
        }
        let (_, capability) = capability?;
        Some(Condition { capability, has })
    }

    /// A value of a member, as JSON.
    pub fn json(&mut self, node: &Node<'_>, field: &str) -> serde_json::Value {
        match node.get_ref() {
            DeValue::String(text) => text.as_ref().into(),
            DeValue::Boolean(yes) => (*yes).into(),
            DeValue::Integer(number) => {
                match i64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) => number.into(),
                    Err(_) => {
                        self.mistake(&node.span(), field, "is too large a number");
                        serde_json::Value::Null
                    }
                }
            }
            _ => {
                self.mistake(
                    &node.span(),
                    field,
                    "compare with a string, a whole number or true and false",
                );
                serde_json::Value::Null
            }
        }
    }

    /// A list of strings, each converted by `read`.
    pub fn list<T>(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        field: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let Some(node) = table.get(key) else {
            return Vec::new();
        };
        let field = format!("{field}.{key}");
        let mut items = Vec::new();
        for (span, word) in self.words(node, &field) {
            match read(&word) {
                Ok(item) => items.push(item),
                Err(message) => self.mistake(&span, &field, message),
            }
        }
        items
    }

    fn words(&mut self, node: &Node<'_>, field: &str) -> Vec<(Range<usize>, String)> {
        let Some(list) = node.get_ref().as_array() else {
            self.mistake(
                &node.span(),
                field,
                format!("must be a list of strings, not {}", kind(node)),
            );
            return Vec::new();
        };
        if list.is_empty() {
            self.mistake(
                &node.span(),
                field,
                "is empty; leave it out, or say whom or what is meant",
            );
        }
        self.strings(list, field)
    }

    fn strings(&mut self, list: &DeArray<'_>, field: &str) -> Vec<(Range<usize>, String)> {
        let mut words = Vec::new();
        for node in list.iter() {
            match node.get_ref().as_str() {
                Some(word) => words.push((node.span(), word.to_owned())),
                None => self.mistake(
                    &node.span(),
                    field,
                    format!("must hold strings, not {}", kind(node)),
                ),
            }
        }
        words
    }

    /// A string that is not empty.
    pub fn text_of(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        field: &str,
    ) -> Option<(Range<usize>, String)> {
        let node = table.get(key)?;
        let field = match field {
            "" => key.to_owned(),
            field => format!("{field}.{key}"),
        };
        match node.get_ref().as_str() {
            Some("") => self.mistake(&node.span(), &field, "is empty"),
            Some(text) if text.chars().any(char::is_control) => {
                self.mistake(&node.span(), &field, "has a control character in it");
            }
            Some(text) => return Some((node.span(), text.to_owned())),
            None => self.mistake(
                &node.span(),
                &field,
                format!("must be a string, not {}", kind(node)),
            ),
        }
        None
    }

    pub fn boolean(&mut self, table: &DeTable<'_>, key: &str, field: &str) -> Option<bool> {
        let node = table.get(key)?;
        let yes = node.get_ref().as_bool();
        if yes.is_none() {
            self.mistake(
                &node.span(),
                &format!("{field}.{key}"),
                format!("must be true or false, not {}", kind(node)),
            );
        }
        yes
    }

    /// Refuses keys that are none of `known`.
    pub fn known_keys(&mut self, table: &DeTable<'_>, field: &str, known: &[&str]) {
        for (key, _) in table {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let near = nearest(name, known.iter().copied());
                let field = if field.is_empty() {
                    name.to_owned()
                } else {
                    format!("{field}.{name}")
                };
                self.mistake(&key.span(), &field, format!("is not known here{near}"));
            }
        }
    }

    /// Notes a mistake at a place of the file.
    pub fn mistake(&mut self, at: &Range<usize>, field: &str, message: impl Into<String>) {
        let line = self.line(at.start);
        self.mistakes.push(Mistake {
            line,
            field: field.to_owned(),
            message: message.into(),
        });
    }

    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        1 + before.iter().filter(|b| **b == b'\n').count()
    }
}

fn kind(node: &Node<'_>) -> &'static str {
    match node.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Both a login and a group may have any name.
fn group_or_login(word: &str) -> String {
    format!(
        "{word:?} is a group of this file: write \"group:{word}\", or \"{word}@\" for a user with that login"
    )
}

/// ` (did you mean …?)` if a known name is similar enough for a typing error.
fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> String {
    known
        .map(|word| (strsim::damerau_levenshtein(name, word), word))
        .filter(|(distance, word)| *distance <= 2.max(word.len() / 3))
        .min()
        .map(|(_, word)| format!(" (did you mean {word:?}?)"))
        .unwrap_or_default()
}
