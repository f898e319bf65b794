//! Paths at the gate. Input: a prefix in a rule, and in the second line the path of a request.
//!
//! A path that is allowed for a prefix must be below it for every server that could be behind us. A
//! path must be denied by a rule as soon as one server would find it below the rule's prefix.

use tailbone::policy::{CAPABILITY, Effect, Path, PathPrefix, Rules, Target, Who};

pub(super) fn run(data: &[u8]) {
    let Some((prefix, sent)) = super::text(data).and_then(|text| text.split_once('\n')) else {
        return;
    };
    // As the gate has it: what is wrong with a path shows when a rule asks for it.
    let Ok(path) = Path::sent(sent) else {
        return;
    };
    super::assert_one_line(&path.first_segment());
    if prefix.contains('\'') || PathPrefix::parse(prefix).is_err() {
        return;
    }
    let rules = |text: String| Rules::parse(&text, CAPABILITY).unwrap();
    let only_below = rules(format!(
        "[[rule]]\ndecision = 'anonymous'\npaths = ['{prefix}']\n"
    ));
    let all_but_below = rules(format!(
        "[[rule]]\ndecision = 'deny'\npaths = ['{prefix}']\n[[rule]]\ndecision = 'anonymous'\n"
    ));
    let target = Target {
        path: Some(path),
        ..Target::default()
    };
    let passes = |rules: &Rules| rules.decide(Who::Nobody, &target).effect == Effect::Anonymous;
    let (allowed, not_denied) = (passes(&only_below), passes(&all_but_below));
    assert!(!(allowed && not_denied), "both below and not below");
    for server in SERVERS {
        let found = server.serves(sent.as_bytes());
        let below = below(prefix.as_bytes(), &found, server.ignores_case);
        let found = String::from_utf8_lossy(&found);
        if allowed {
            assert!(
                below,
                "{sent} passes as below {prefix}; {}: {found}",
                server.name
            );
        }
        if not_denied {
            assert!(
                !below,
                "{sent} passes as not below {prefix}; {}: {found}",
                server.name
            );
        }
    }
}

fn below(prefix: &[u8], path: &[u8], ignore_case: bool) -> bool {
    let prefix = prefix.strip_suffix(b"/").unwrap_or(prefix);
    let Some((head, rest)) = path.split_at_checked(prefix.len()) else {
        return false;
    };
    let same = if ignore_case {
        head.eq_ignore_ascii_case(prefix)
    } else {
        head == prefix
    };
    same && (rest.is_empty() || rest.starts_with(b"/"))
}

type Step = fn(&[u8]) -> Vec<u8>;

/// What one kind of server does with a path before it looks for a file or a handler.
struct Server {
    name: &'static str,
    steps: &'static [Step],
    ignores_case: bool,
}

const fn server(name: &'static str, steps: &'static [Step]) -> Server {
    Server {
        name,
        steps,
        ignores_case: false,
    }
}

impl Server {
    fn serves(&self, path: &[u8]) -> Vec<u8> {
        self.steps
            .iter()
            .fold(path.to_vec(), |path, step| step(&path))
    }
}

const SERVERS: &[Server] = &[
    server("takes it as it is", &[]),
    server("nginx", &[decode, merge, dots]),
    server("Apache", &[dots, decode, merge, dots]),
    server("a Go mux", &[decode, merge, dots]),
    server("Tomcat", &[parameters, decode, backslashes, merge, dots]),
    server("Jetty", &[parameters, dots, decode]),
    server("a servlet that cuts late", &[decode, parameters, dots]),
    server("a URL library", &[backslashes, encoded_dots, decode]),
    server("decodes after resolving", &[merge, dots, decode]),
    server("decodes twice", &[decode, dots, decode, dots]),
    server(
        "decodes in front and behind",
        &[decode, decode, merge, dots],
    ),
    server("looks for a query late", &[decode, query, dots]),
    server("decodes wide characters", &[wide, decode, merge, dots]),
    Server {
        name: "IIS",
        steps: &[decode, wide, backslashes, merge, dots, ends],
        ignores_case: true,
    },
    Server {
        name: "a best fit to a narrow character set",
        steps: &[decode, wide, best_fit, backslashes, merge, dots],
        ignores_case: true,
    },
    Server {
        name: "a Windows file system",
        steps: &[decode, backslashes, merge, ends, dots],
        ignores_case: true,
    },
    Server {
        name: "a file system without case",
        steps: &[decode, backslashes, merge, dots],
        ignores_case: true,
    },
];

fn hex(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits).ok()?;
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

fn decode(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < path.len() {
        match path.get(at + 1..at + 3).and_then(hex) {
            Some(byte) if path[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(path[at]);
                at += 1;
            }
        }
    }
    out
}

/// `%uXXXX`, as JavaScript's old `escape` wrote it.
fn wide(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < path.len() {
        let marked = path[at..].starts_with(b"%u") || path[at..].starts_with(b"%U");
        let high = path.get(at + 2..at + 4).and_then(hex);
        let low = path.get(at + 4..at + 6).and_then(hex);
        match (high, low) {
            (Some(high), Some(low)) if marked => {
                match char::from_u32(u32::from(u16::from_be_bytes([high, low]))) {
                    Some(c) => out.extend_from_slice(c.to_string().as_bytes()),
                    None => out.extend_from_slice(&path[at..at + 6]),
                }
                at += 6;
            }
            _ => {
                out.push(path[at]);
                at += 1;
            }
        }
    }
    out
}

/// Full-width forms of ASCII as ASCII.
fn best_fit(path: &[u8]) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(path) else {
        return path.to_vec();
    };
    let narrow = |c: char| match u32::from(c) {
        wide @ 0xff01..=0xff5e => char::from_u32(wide - 0xfee0).unwrap_or(c),
        _ => c,
    };
    text.chars().map(narrow).collect::<String>().into_bytes()
}

/// Names without the dots and blanks at their end.
fn ends(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, segment) in path.split(|byte| *byte == b'/').enumerate() {
        if at > 0 {
            out.push(b'/');
        }
        let kept = segment.iter().rposition(|byte| !b". ".contains(byte));
        out.extend_from_slice(match kept {
            Some(last) => &segment[..=last],
            None => segment,
        });
    }
    out
}

fn merge(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    for byte in path {
        if !(*byte == b'/' && out.last() == Some(&b'/')) {
            out.push(*byte);
        }
    }
    out
}

fn backslashes(path: &[u8]) -> Vec<u8> {
    let turned = |byte: &u8| if *byte == b'\\' { b'/' } else { *byte };
    path.iter().map(turned).collect()
}

fn parameters(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut cut = false;
    for byte in path {
        match byte {
            b'/' => cut = false,
            b';' => cut = true,
            _ => {}
        }
        if !cut {
            out.push(*byte);
        }
    }
    out
}

fn query(path: &[u8]) -> Vec<u8> {
    let end = path.iter().position(|byte| matches!(byte, b'?' | b'#'));
    path[..end.unwrap_or(path.len())].to_vec()
}

/// RFC 3986, section 5.2.4.
fn dots(path: &[u8]) -> Vec<u8> {
    resolved(path, |segment| match segment {
        b"." => 1,
        b".." => 2,
        _ => 0,
    })
}

/// As in WHATWG's URL standard, where an encoded dot is a dot.
fn encoded_dots(path: &[u8]) -> Vec<u8> {
    resolved(path, |segment| {
        match segment.to_ascii_lowercase().as_slice() {
            b"." | b"%2e" => 1,
            b".." | b".%2e" | b"%2e." | b"%2e%2e" => 2,
            _ => 0,
        }
    })
}

fn resolved(path: &[u8], kind: impl Fn(&[u8]) -> u8) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let segments: Vec<&[u8]> = path.split(|byte| *byte == b'/').skip(1).collect();
    for (at, segment) in segments.iter().enumerate() {
        let last = at + 1 == segments.len();
        match kind(segment) {
            0 => {
                kept.push(segment);
                continue;
            }
            2 => drop(kept.pop()),
            _ => {}
        }
        if last {
            kept.push(b"");
        }
    }
    let mut out = Vec::new();
    for segment in kept {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}
