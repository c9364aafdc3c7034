//! The documentation's fenced blocks, for the tests that hold it against the programs.
//!
//! A block that can't run where the tests run has a comment right before it: `<!-- not run: it needs a kubelet -->`.

use std::path::{Path, PathBuf};

/// One fenced block.
#[derive(Debug)]
pub(crate) struct Block {
    /// `docs/networks.md:12`
    pub(crate) place: String,
    /// What the fence names: `sh`, `console`, `toml`, …
    pub(crate) language: String,
    /// Why it can't run here.
    pub(crate) not_run: Option<String>,
    pub(crate) text: String,
}

/// The pages: the README, and all that the book's table of contents lists, in its order. None where the tests run without their
/// sources, as on the second machine.
pub(crate) fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if !root.join("README.md").exists() {
        return Vec::new();
    }
    let contents = std::fs::read_to_string(root.join("docs/SUMMARY.md")).expect("docs/SUMMARY.md");
    let listed = contents.lines().filter_map(|line| line.split_once("](")?.1.strip_suffix(')'));
    let listed = listed.map(|name| root.join("docs").join(name));
    std::iter::once(root.join("README.md")).chain(listed).collect()
}

/// The blocks of a page, in its order.
pub(crate) fn blocks(page: &Path) -> Vec<Block> {
    let text = std::fs::read_to_string(page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
    let name = page.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(page).display().to_string();
    let (mut blocks, mut open, mut before): (_, Option<Block>, _) = (Vec::new(), None, None);
    // Blocks within lists are indented.
    let mut indent = 0;
    for (number, line) in text.lines().enumerate() {
        let bare = line.trim_start();
        match (&mut open, bare.strip_prefix("```")) {
            (None, Some(language)) => {
                indent = line.len() - bare.len();
                let place = format!("{name}:{}", number + 1);
                let (language, text) = (language.trim().to_owned(), String::new());
                open = Some(Block { place, language, not_run: before.take(), text });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text.extend([line.get(indent..).unwrap_or_default(), "\n"]),
            (None, None) => {
                let reason = bare.strip_prefix("<!-- not run: ").and_then(|rest| rest.strip_suffix(" -->"));
                before = reason.map(str::to_owned);
            }
        }
    }
    assert!(open.is_none(), "{name}: a fence is not closed");
    blocks
}

impl Block {
    /// Of a block for a shell: what is typed. In `console` blocks that is what follows `$ `.
    pub(crate) fn typed(&self) -> Option<String> {
        match self.language.as_str() {
            "sh" => Some(self.text.clone()),
            "console" => {
                let lines = self.text.lines().filter_map(|line| line.strip_prefix("$ "));
                Some(lines.map(|line| format!("{line}\n")).collect())
            }
            _ => None,
        }
    }

    /// What a `console` block shows as printed, a line each.
    pub(crate) fn printed(&self) -> Vec<&str> {
        match self.language.as_str() {
            "console" => self.text.lines().filter(|line| !line.starts_with("$ ")).collect(),
            _ => Vec::new(),
        }
    }
}
