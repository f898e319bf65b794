//! The question before a change that cannot be undone.

use super::{console::Console, exit::Failure};

/// Asks, unless `yes` confirms beforehand. Any answer but a yes is a refusal. So is the lack of
/// anybody to ask: a script must not take the change for done.
pub fn confirm(console: &mut Console<'_>, question: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let Some(person) = console.person.as_deref_mut() else {
        return Err(Failure::refused(format!(
            "{question} There is no terminal to ask on; say --yes to go on. Nothing was changed"
        )));
    };
    let _ = write!(console.err, "{question} [y/N] ");
    let _ = console.err.flush();
    let mut answer = String::new();
    // An answer that cannot be read is not a yes.
    let _ = person.read_line(&mut answer);
    match answer.trim() {
        "y" | "Y" | "yes" | "Yes" | "YES" => Ok(()),
        _ => Err(Failure::refused("not confirmed; nothing was changed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit::USAGE;

    fn ask(answer: Option<&str>, yes: bool) -> (Result<(), Failure>, String) {
        let mut said = Vec::new();
        let mut answer = answer.map(str::as_bytes);
        let result = confirm(
            &mut Console {
                out: &mut Vec::new(),
                err: &mut said,
                person: answer
                    .as_mut()
                    .map(|answer| answer as &mut dyn std::io::BufRead),
                layout: crate::cli::layout::Layout::PIPE,
            },
            "Remove key tb-1?",
            yes,
        );
        (result, String::from_utf8(said).expect("text"))
    }

    #[test]
    fn only_a_yes_is_a_yes() {
        for answer in ["y\n", "Y\n", "yes\n", " y "] {
            assert!(ask(Some(answer), false).0.is_ok(), "{answer:?}");
        }
        for answer in ["\n", "", "n\n", "yeah\n", "y y\n"] {
            let (result, said) = ask(Some(answer), false);
            assert_eq!(result.expect_err(answer).code(), USAGE);
            assert_eq!(said, "Remove key tb-1? [y/N] ");
        }
    }

    #[test]
    fn nobody_to_ask_is_a_refusal_that_names_the_flag() {
        let failure = ask(None, false).0.expect_err("refused");
        assert_eq!(failure.code(), USAGE);
        assert!(failure.message().expect("words").contains("--yes"));
        let (result, said) = ask(None, true);
        assert!(result.is_ok() && said.is_empty());
    }
}
