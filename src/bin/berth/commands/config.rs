//! `berth config`: configurations of other runtimes, said in Berth's words. Needs no daemon.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use berth::config::Source;
use berth::config::import::{self, Fate, Import, Origin};
use clap::{Args, Subcommand};

use crate::output;

const CONTAINERD: &str = "/etc/containerd/config.toml";
const CRIO: &str = "/etc/crio/crio.conf";
const CRIO_DROP_INS: &str = "/etc/crio/crio.conf.d";
/// Most bytes of a configuration file that is read.
const LIMIT: u64 = 4 << 20;

/// What can be done with configurations.
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Write what containerd or CRI-O are configured with as a file for berthd's conf.d
    ///
    /// Without options: /etc/containerd/config.toml, or /etc/crio/crio.conf with its drop-ins. What becomes of each key is
    /// told on standard error.
    Import(ImportOptions),
}

/// Options of `config import`.
#[derive(Debug, Args)]
pub(crate) struct ImportOptions {
    /// A configuration file of containerd; several are read in this order
    #[arg(long, value_name = "FILE")]
    containerd: Vec<PathBuf>,
    /// A configuration file of CRI-O; several are read in this order
    #[arg(long, value_name = "FILE", conflicts_with = "containerd")]
    crio: Vec<PathBuf>,
    /// Where to write it; standard output without
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long, requires = "output")]
    force: bool,
    /// Tell only of keys that have no equivalent
    #[arg(short, long)]
    quiet: bool,
}

impl Config {
    pub(crate) fn execute(self) -> Result<u8> {
        match self {
            Self::Import(options) => options.execute(),
        }
    }
}

impl ImportOptions {
    fn execute(self) -> Result<u8> {
        let (origin, files) = self.files()?;
        let search = std::env::var_os("PATH").unwrap_or_default();
        let mut import = Import::new(std::env::split_paths(&search).collect());
        let mut read_files = Vec::new();
        for file in files {
            let text = read(&file)?;
            import.add(origin, &file, &text)?;
            let more = import::imports(&text).into_iter().flat_map(|pattern| matching(&file, &pattern));
            let more: Vec<PathBuf> = more.filter(|other| *other != file).collect();
            read_files.push(file);
            for file in more {
                import.add(origin, &file, &read(&file)?)?;
                read_files.push(file);
            }
        }
        let text = import.file();
        check(&text)?;
        match &self.output {
            Some(path) => write(path, &text, self.force)?,
            None => output::print(&text)?,
        }
        self.tell(&read_files, &import);
        Ok(0)
    }

    fn files(&self) -> Result<(Origin, Vec<PathBuf>)> {
        if !self.containerd.is_empty() {
            return Ok((Origin::Containerd, self.containerd.clone()));
        }
        if !self.crio.is_empty() {
            return Ok((Origin::Crio, self.crio.clone()));
        }
        if Path::new(CONTAINERD).exists() {
            return Ok((Origin::Containerd, vec![PathBuf::from(CONTAINERD)]));
        }
        let mut files: Vec<PathBuf> = Path::new(CRIO).exists().then(|| CRIO.into()).into_iter().collect();
        let mut drop_ins: Vec<PathBuf> = std::fs::read_dir(CRIO_DROP_INS)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
            .collect();
        drop_ins.sort();
        files.append(&mut drop_ins);
        if files.is_empty() {
            bail!("neither {CONTAINERD} nor {CRIO} is there: name a file with --containerd or --crio");
        }
        Ok((Origin::Crio, files))
    }

    /// On standard error: the configuration itself may go to standard output.
    fn tell(&self, files: &[PathBuf], import: &Import) {
        let mut lines = Vec::new();
        let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        lines.push(format!("read {}", names.join(", ")));
        for note in &import.notes {
            match &note.fate {
                Fate::Becomes(ours) if !self.quiet => lines.push(format!("  {} -> {ours}", note.key)),
                Fate::Needless(why) if !self.quiet => {
                    lines.push(format!("  {}: not needed: {why}", note.key));
                }
                Fate::Missing(instead) => lines.push(format!("! {}: no equivalent: {instead}", note.key)),
                _ => {}
            }
        }
        if let Some(path) = &self.output {
            lines.push(format!("written to {}; berthd config check reads it", path.display()));
        }
        eprintln!("{}", lines.join("\n"));
    }
}

/// The files that `pattern` stands for, beside `file` if it is relative; a `*` may stand in the last name.
fn matching(file: &Path, pattern: &str) -> Vec<PathBuf> {
    let path = file.parent().unwrap_or(Path::new("/")).join(pattern);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some((start, end)) = name.split_once('*') else {
        return path.is_file().then_some(path).into_iter().collect();
    };
    let entries = std::fs::read_dir(path.parent().unwrap_or(Path::new("/"))).into_iter().flatten().flatten();
    let fits = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
    };
    let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(fits).collect();
    found.sort();
    found
}

fn read(path: &Path) -> Result<String> {
    use std::io::Read as _;
    let failed = || format!("reading {}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(failed)?;
    file.take(LIMIT + 1).read_to_string(&mut text).with_context(failed)?;
    if text.len() as u64 > LIMIT {
        bail!("{} is larger than {} MiB: that is no configuration", path.display(), LIMIT >> 20);
    }
    Ok(text)
}

/// What is written must be what berthd takes.
fn check(text: &str) -> Result<()> {
    let directory = tempfile::tempdir().context("making a directory to check the result in")?;
    let file = directory.path().join("config.toml");
    std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    Source { file: Some(file), ..Source::default() }
        .load()
        .map(drop)
        .map_err(|error| anyhow::anyhow!("{error}"))
        .context("berthd would refuse what was read; correct the value there")
}

fn write(path: &Path, text: &str, force: bool) -> Result<()> {
    let failed = || format!("writing {}", path.display());
    if path.exists() && !force {
        bail!("{} is there already: --force replaces it", path.display());
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory).with_context(failed)?;
    let mut file = tempfile::NamedTempFile::new_in(directory).with_context(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).with_context(failed)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode).with_context(failed)?;
    file.persist(path).with_context(failed)?;
    Ok(())
}
