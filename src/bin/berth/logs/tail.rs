//! Where the last lines of a log start, found from its end: a log of gigabytes is not read for ten lines.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::line;

/// Bytes read at once, from the end backwards.
const BLOCK: usize = 64 << 10;

/// The offset in `file` at which its last `count` lines start. Lines as the container wrote them: the parts of one
/// count together. A last line that has no end yet counts too.
pub(crate) fn start(file: &File, count: usize) -> io::Result<u64> {
    let end = file.metadata()?.len();
    if count == 0 {
        return Ok(end);
    }
    let mut seen = 0;
    let mut position = end;
    // Bytes from `position` on, up to the end of the line that is being looked at.
    let mut held: Vec<u8> = Vec::new();
    while position > 0 {
        let length = usize::try_from(position).map_or(BLOCK, |before| before.min(BLOCK));
        let mut block = vec![0; length];
        position -= u64::try_from(length).unwrap_or(position);
        file.read_exact_at(&mut block, position)?;
        block.append(&mut held);
        held = block;
        // Every line whose start is known, the last first: it starts after the line end that is before it.
        while let Some(before) = previous_end(&held) {
            let start = before + 1;
            if ends_a_line(&held, start) {
                seen += 1;
                if seen > count {
                    let after = end_of(&held, start);
                    return Ok(position + u64::try_from(after).unwrap_or_default());
                }
            }
            held.truncate(start);
        }
    }
    // What is left is the file's first line.
    if ends_a_line(&held, 0) && seen + 1 > count {
        return Ok(u64::try_from(end_of(&held, 0)).unwrap_or_default());
    }
    Ok(0)
}

/// The line end before the last line held (which may or may not have its own end).
fn previous_end(held: &[u8]) -> Option<usize> {
    let body = held.strip_suffix(b"\n").unwrap_or(held);
    body.iter().rposition(|byte| *byte == b'\n')
}

fn end_of(held: &[u8], start: usize) -> usize {
    held.iter().skip(start).position(|byte| *byte == b'\n').map_or(held.len(), |end| start + end + 1)
}

/// Whether the file's line at `start` is the last part of one of the container's.
fn ends_a_line(held: &[u8], start: usize) -> bool {
    let text = held.get(start..).unwrap_or_default();
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    !text.is_empty() && line::parse(text).is_none_or(|line| !line.partial)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    fn last(content: &str, count: usize) -> String {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        let start = usize::try_from(start(&file, count).unwrap()).unwrap();
        content[start..].to_owned()
    }

    fn line(tag: &str, text: &str) -> String {
        format!("2026-01-01T00:00:00.000000000Z stdout {tag} {text}\n")
    }

    #[test]
    fn the_last_lines() {
        let lines: Vec<String> = (0..5).map(|number| line("F", &number.to_string())).collect();
        let content = lines.concat();
        for count in 0..8 {
            let expected = lines[5 - count.min(5)..].concat();
            assert_eq!(last(&content, count), expected, "{count}");
        }
        assert_eq!(last("", 3), "");
    }

    #[test]
    fn parts_count_as_one_line() {
        let content =
            [line("F", "a"), line("P", "b"), line("P", "c"), line("F", "d"), line("F", "e")].concat();
        assert_eq!(
            last(&content, 2),
            [line("P", "b"), line("P", "c"), line("F", "d"), line("F", "e")].concat()
        );
        assert_eq!(last(&content, 1), line("F", "e"));
    }

    #[test]
    fn blocks_are_read_as_needed() {
        let lines: Vec<String> =
            (0..300).map(|number| line("F", &format!("{number} {}", "x".repeat(1000)))).collect();
        let content = lines.concat();
        for count in [1, 62, 63, 64, 200, 299, 300, 301] {
            assert_eq!(last(&content, count), lines[300 - count.min(300)..].concat(), "{count}");
        }
    }

    #[test]
    fn one_line_longer_than_blocks() {
        let content = format!("{}{}", line("F", "a"), line("F", &"x".repeat(3 * BLOCK)));
        assert_eq!(last(&content, 1), content[line("F", "a").len()..]);
    }
}
