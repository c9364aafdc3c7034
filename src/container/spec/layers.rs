//! Reads files out of an image before anything of it is mounted: the overlay's rules, followed over the layers'
//! directories.
//!
//! A path is resolved one component at a time over all layers, as the mounted overlay would: the topmost layer that has
//! the name wins, a whiteout hides what is below it, an opaque directory hides the directories below it, and symbolic
//! links (absolute ones too) start again at the image's root. Within a layer the kernel opens every path
//! (`openat2` with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`), so a hostile layer leads nowhere else.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Error;

/// As many links as the kernel follows.
const MAX_LINKS: usize = 40;

/// Reads a regular file of the image, whole. `None` when the image has no such file.
pub(super) fn read(layers: &[PathBuf], path: &str, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let fail = |source: io::Error| Error::ImageFile { path: path.to_owned(), source };
    let Some(mut file) = resolve(layers, Path::new(path)).map_err(fail)? else { return Ok(None) };
    let mut content = Vec::new();
    file.by_ref().take(limit + 1).read_to_end(&mut content).map_err(fail)?;
    if content.len() as u64 > limit {
        return Err(Error::ImageFileTooLarge { path: path.to_owned(), limit });
    }
    Ok(Some(content))
}

/// What one name is in the merged view.
enum Entry {
    /// Nothing, or hidden.
    Absent,
    Directory,
    Link(PathBuf),
    /// A regular file, in the layer of this index.
    File(usize),
    /// A device, socket or FIFO: never opened.
    Special,
}

/// The directories that make up one directory of the image, the topmost first: stacked, they show what the image has
/// there. Links on the way are followed. `None` when the image has nothing of that name.
///
/// # Errors
/// `NotADirectory` when it has something else there.
pub(crate) fn directories(layers: &[PathBuf], path: &Path) -> io::Result<Option<Vec<PathBuf>>> {
    let roots = roots(layers)?;
    let at = match walk(&roots, path)? {
        Target::Nothing => return Ok(None),
        Target::Directory(at) => at,
        Target::File(..) | Target::Special => return Err(Errno::NOTDIR.into()),
    };
    stack(&roots, layers, &at).map(Some)
}

/// The same of exactly this path: no link is followed. None where the image has no directory, or nothing.
pub(crate) fn directories_at(layers: &[PathBuf], path: &Path) -> io::Result<Vec<PathBuf>> {
    let roots = roots(layers)?;
    if path.components().next().is_none() || matches!(look_up(&roots, path)?, Entry::Directory) {
        return stack(&roots, layers, path);
    }
    Ok(Vec::new())
}

/// The directories at a path without links, down to the one that hides the others.
fn stack(roots: &[OwnedFd], layers: &[PathBuf], at: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    'layers: for (root, layer) in roots.iter().zip(layers) {
        let mut hides = false;
        let mut prefix = PathBuf::new();
        // The root itself first: it may be opaque, too.
        for component in std::iter::once(Component::CurDir).chain(at.components()) {
            prefix.push(component);
            let file = match open(root, &prefix, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC) {
                Ok(file) => file,
                Err(Errno::NOENT) if hides => break 'layers,
                Err(Errno::NOENT) => continue 'layers,
                Err(Errno::NOTDIR | Errno::LOOP) => break 'layers,
                Err(error) => return Err(error.into()),
            };
            if FileType::from_raw_mode(fs::fstat(&file)?.st_mode) != FileType::Directory {
                break 'layers;
            }
            hides |= is_opaque(&file);
        }
        // Without a trailing slash for the root.
        found.push(if at.as_os_str().is_empty() { layer.clone() } else { layer.join(at) });
        if hides {
            break;
        }
    }
    Ok(found)
}

/// What a path leads to in the merged view, its links followed; paths are relative to the root and have no links.
enum Target {
    Nothing,
    Directory(PathBuf),
    File(usize, PathBuf),
    Special,
}

fn roots(layers: &[PathBuf]) -> io::Result<Vec<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    layers.iter().map(|dir| fs::open(dir, flags, Mode::empty()).map_err(io::Error::from)).collect()
}

fn resolve(layers: &[PathBuf], path: &Path) -> io::Result<Option<File>> {
    let roots = roots(layers)?;
    match walk(&roots, path)? {
        Target::File(layer, at) => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            Ok(Some(open(&roots[layer], &at, flags)?.into()))
        }
        Target::Nothing | Target::Directory(_) | Target::Special => Ok(None),
    }
}

fn walk(roots: &[OwnedFd], path: &Path) -> io::Result<Target> {
    let mut todo: VecDeque<OsString> = VecDeque::new();
    push_front(&mut todo, path);
    let mut at = PathBuf::new(); // relative to the root, without links
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        match look_up(roots, &next)? {
            Entry::Directory => at = next,
            Entry::File(layer) if todo.is_empty() => return Ok(Target::File(layer, next)),
            Entry::Special if todo.is_empty() => return Ok(Target::Special),
            Entry::Link(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                if target.is_absolute() {
                    at.clear();
                }
                push_front(&mut todo, &target);
            }
            Entry::Absent | Entry::Special | Entry::File(_) => return Ok(Target::Nothing),
        }
    }
    Ok(Target::Directory(at))
}

/// Puts the components of a path before what is left to do.
fn push_front(todo: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => todo.push_front(name.to_owned()),
            Component::ParentDir => todo.push_front("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

/// Looks a path without links up in the merged view, top layer first.
fn look_up(roots: &[OwnedFd], path: &Path) -> io::Result<Entry> {
    for (layer, root) in roots.iter().enumerate() {
        let mut below_hidden = false;
        let mut prefix = PathBuf::new();
        let mut components = path.components().peekable();
        while let Some(component) = components.next() {
            prefix.push(component);
            let last = components.peek().is_none();
            let file = match open(root, &prefix, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC) {
                Ok(file) => file,
                Err(Errno::NOENT) => break,
                // A file or a link where layers above have a directory: what is below it does not show.
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Entry::Absent),
                Err(error) => return Err(error.into()),
            };
            let stat = fs::fstat(&file)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    if last {
                        return Ok(Entry::Directory);
                    }
                    below_hidden |= is_opaque(&file);
                }
                FileType::CharacterDevice if stat.st_rdev == 0 => return Ok(Entry::Absent),
                _ if !last => return Ok(Entry::Absent),
                FileType::Symlink => {
                    let target = fs::readlinkat(&file, "", Vec::new())?;
                    return Ok(Entry::Link(OsString::from_vec(target.into_bytes()).into()));
                }
                FileType::RegularFile => return Ok(Entry::File(layer)),
                _ => return Ok(Entry::Special),
            }
        }
        if below_hidden {
            return Ok(Entry::Absent);
        }
    }
    Ok(Entry::Absent)
}

fn open(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // The kernel answers EAGAIN when something was renamed meanwhile; layers don't change, one retry is plenty.
    match fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Err(Errno::AGAIN) => fs::openat2(root, path, flags, Mode::empty(), resolve),
        result => result,
    }
}

/// Whether a directory hides those below it, by its path on the host.
pub(crate) fn hides_below(directory: &Path) -> bool {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::open(directory, flags, Mode::empty()).is_ok_and(|directory| is_opaque(&directory))
}

/// Overlayfs, "Opaque directories": the attribute is `trusted.` or, for mounts with `userxattr`, `user.`.
fn is_opaque(directory: &OwnedFd) -> bool {
    // An O_PATH descriptor has no attributes of its own; its link in /proc leads to the directory.
    let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
    ["trusted.overlay.opaque", "user.overlay.opaque"].iter().any(|name| {
        let mut value = [0_u8; 2];
        matches!(fs::getxattr(path.as_str(), *name, &mut value), Ok(length) if length == 1 && value[0] == b'y')
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    /// Paths and contents.
    type Layer<'a> = &'a [(&'a str, &'a str)];

    /// The directory, kept so that it is removed at the end, and the layers in it.
    struct Image(#[allow(dead_code)] tempfile::TempDir, Vec<PathBuf>);

    impl Image {
        /// Layers, top first; each a list of (path, content): `-> target` is a link, `whiteout` and `opaque` are such.
        fn new(layers: &[Layer<'_>]) -> Self {
            let dir = tempfile::Builder::new().prefix("berth-spec-layers").tempdir_in("/run").unwrap();
            let mut roots = Vec::new();
            for (index, layer) in layers.iter().enumerate() {
                let root = dir.path().join(index.to_string());
                std::fs::create_dir(&root).unwrap();
                for (path, content) in *layer {
                    let path = root.join(path);
                    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                    match (*content, content.strip_prefix("-> ")) {
                        (_, Some(target)) => symlink(target, &path).unwrap(),
                        ("whiteout", _) => {
                            fs::mknodat(fs::CWD, &path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
                        }
                        ("opaque", _) => {
                            std::fs::create_dir_all(&path).unwrap();
                            fs::setxattr(&path, "trusted.overlay.opaque", b"y", fs::XattrFlags::empty())
                                .unwrap();
                        }
                        ("fifo", _) => {
                            fs::mknodat(fs::CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
                        }
                        _ => std::fs::write(&path, content).unwrap(),
                    }
                }
                roots.push(root);
            }
            Self(dir, roots)
        }

        fn read(&self, path: &str) -> Option<String> {
            read(&self.1, path, 64).unwrap().map(|content| String::from_utf8(content).unwrap())
        }
    }

    #[test]
    fn the_overlays_rules() {
        let cases: &[(&[Layer<'_>], Option<&str>)] = &[
            (&[&[("etc/passwd", "top")], &[("etc/passwd", "bottom")]], Some("top")),
            (&[&[("etc/x", "")], &[("etc/passwd", "bottom")]], Some("bottom")),
            (&[&[("bin/x", "")], &[("etc/passwd", "bottom")]], Some("bottom")),
            (&[&[("etc/passwd", "whiteout")], &[("etc/passwd", "bottom")]], None),
            (&[&[("etc", "whiteout")], &[("etc/passwd", "bottom")]], None),
            (&[&[("etc", "opaque")], &[("etc/passwd", "bottom")]], None),
            (&[&[("etc", "opaque"), ("etc/passwd", "top")], &[("etc/passwd", "bottom")]], Some("top")),
            (&[&[("x", "")], &[("etc", "whiteout")], &[("etc/passwd", "bottom")]], None),
            (&[&[("etc", "a file")], &[("etc/passwd", "bottom")]], None),
            // Links: relative, absolute, over layers, to a directory, dangling, in a circle, out of the root.
            (&[&[("etc/passwd", "-> ../usr/p")], &[("usr/p", "linked")]], Some("linked")),
            (&[&[("etc/passwd", "-> /usr/p")], &[("usr/p", "linked")]], Some("linked")),
            (&[&[("etc", "-> usr/etc")], &[("usr/etc/passwd", "linked")]], Some("linked")),
            (&[&[("etc/passwd", "-> ../../../../../p"), ("p", "still inside")]], Some("still inside")),
            (&[&[("etc/passwd", "-> /nowhere")]], None),
            (&[&[("etc/passwd", "-> /etc")]], None),
            (&[&[("etc/passwd", "fifo")]], None),
            (&[&[("etc/passwd/x", "")], &[("etc/passwd", "bottom")]], None),
            (&[&[]], None),
            (&[], None),
        ];
        for (layers, want) in cases {
            let image = Image::new(layers);
            assert_eq!(image.read("/etc/passwd").as_deref(), *want, "{layers:?}");
        }
    }

    #[test]
    fn links_never_leave_the_image() {
        let secret = tempfile::Builder::new().prefix("berth-spec-secret").tempfile_in("/run").unwrap();
        std::fs::write(secret.path(), "secret").unwrap();
        let outside = secret.path().to_str().unwrap();
        for target in
            [outside.to_owned(), format!("../../../../../..{outside}"), "/proc/self/root/etc/passwd".into()]
        {
            let link = format!("-> {target}");
            let image = Image::new(&[&[("etc/passwd", &link)]]);
            assert_eq!(image.read("/etc/passwd"), None, "{target}");
        }
        // A directory link in the middle of the way.
        let image = Image::new(&[&[("etc", "-> /run")]]);
        let name = secret.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(image.read(&format!("/etc/{name}")), None);
    }

    #[test]
    fn circles_and_size_are_bounded() {
        let image = Image::new(&[&[("etc/passwd", "-> /etc/group"), ("etc/group", "-> passwd")]]);
        assert!(matches!(read(&image.1, "/etc/passwd", 64), Err(Error::ImageFile { .. })));
        let huge = "x".repeat(65);
        let image = Image::new(&[&[("etc/passwd", &huge)]]);
        let error = read(&image.1, "/etc/passwd", 64).unwrap_err().to_string();
        assert_eq!(error, "/etc/passwd of the image is larger than 64 bytes");
        assert!(read(&image.1, "/etc/passwd", 65).unwrap().is_some());
    }
}
