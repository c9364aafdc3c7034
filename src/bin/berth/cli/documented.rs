//! What the documentation shows can be typed: also where it can't be run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use clap::Parser;
use clap::error::ErrorKind;

#[path = "../../../../tests/support/pages.rs"]
#[allow(dead_code, reason = "the integration tests use the rest")]
mod pages;

use super::Cli;

/// The commands of a script, each as its words: enough of a shell's grammar for what documentation shows.
fn commands(script: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words, mut word) = (vec![], vec![], None::<String>);
    let mut chars = script.chars().peekable();
    let mut quote = None;
    while let Some(char) = chars.next() {
        match (quote, char) {
            (Some(open), char) if open == char => quote = None,
            (Some(_), char) => word.get_or_insert_default().push(char),
            (None, '\'' | '"') => {
                word.get_or_insert_default();
                quote = Some(char);
            }
            (None, '\\') => match chars.next() {
                Some('\n') | None => {}
                Some(next) => word.get_or_insert_default().push(next),
            },
            (None, '#') if word.is_none() => while chars.next_if(|next| *next != '\n').is_some() {},
            (None, '\n' | ';' | '|' | '&' | '<' | '>') => {
                words.extend(word.take());
                commands.push(std::mem::take(&mut words));
                // What follows an arrow is a file's name.
                if matches!(char, '<' | '>') {
                    while chars.next_if(|next| next.is_whitespace() && *next != '\n').is_some() {}
                    while chars.next_if(|next| !next.is_whitespace()).is_some() {}
                }
            }
            (None, char) if char.is_whitespace() => words.extend(word.take()),
            (None, char) => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    commands.push(words);
    commands.retain(|words| !words.is_empty());
    commands
}

#[test]
fn a_script_is_taken_apart() {
    let script = "a 'b c' d\\\n  e # f g\nh | i -x && j \"k l\" > m n; o < p\n";
    let taken = commands(script);
    let expected: [&[&str]; 6] =
        [&["a", "b c", "d", "e"], &["h"], &["i", "-x"], &["j", "k l"], &["n"], &["o"]];
    assert_eq!(taken, expected);
}

#[test]
fn what_is_shown_can_be_typed() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for block in pages::pages().iter().flat_map(|page| pages::blocks(page)) {
        for words in block.typed().iter().flat_map(|script| commands(script)) {
            if words[0] != "berth" {
                continue;
            }
            seen += 1;
            match Cli::try_parse_from(&words) {
                Err(error) if !matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
                    wrong.push(format!("{}: {}: {error}", block.place, words.join(" ")));
                }
                _ => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 50, "only {seen} commands were found");
}
