//! Image volumes (KEP-4639): an image's layers, or a directory in them, as a read-only mount.
//!
//! The layers are stacked by an overlay that the shim mounts in the mount namespace of the creation: nothing of it stands in the
//! host's mount table, and it goes with the container. A directory that only one layer has is bound as it is.

use std::io;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;

use super::super::{Error, IdMaps, layers, userns};
use super::{destination, mapped, mount};
use crate::proto::runtime::v1 as cri;

/// The mount of an image with these layers, top first.
///
/// With `labelled`, one layer is mounted as several are: a mount has a label, the layer keeps its own.
pub(super) fn build(
    asked: &cri::Mount,
    layers: &[PathBuf],
    maps: Option<&IdMaps>,
    labelled: bool,
) -> Result<Mount, Error> {
    const SUB_PATH: &str = "mounts[].image_sub_path";
    let image = asked.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    let destination = destination(&asked.container_path)?;
    let own = userns::of_mount(asked)?;
    let maps = own.as_ref().or(maps);
    if !asked.readonly {
        return Err(Error::invalid(
            "mounts[].readonly",
            "false",
            "must be true: image volumes are read-only",
        ));
    }
    if !asked.host_path.is_empty() {
        return Err(Error::invalid("mounts[].host_path", &asked.host_path, "must be empty beside an image"));
    }
    if asked.propagation != 0 {
        let value = asked.propagation.to_string();
        return Err(Error::invalid("mounts[].propagation", value, "must be private for an image"));
    }
    let sub_path = Path::new(&asked.image_sub_path);
    if !sub_path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        let reason = "must be relative and without \"..\"";
        return Err(Error::invalid(SUB_PATH, &asked.image_sub_path, reason));
    }
    let directories = match layers::directories(layers, sub_path) {
        Ok(Some(directories)) => directories,
        Ok(None) => return Err(Error::invalid(SUB_PATH, &asked.image_sub_path, "is not in the image")),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(Error::invalid(SUB_PATH, &asked.image_sub_path, "is no directory of the image"));
        }
        Err(source) => return Err(Error::ImageFile { path: asked.image_sub_path.clone(), source }),
    };
    let mut result = match directories.as_slice() {
        [] => return Err(Error::invalid("mounts[].image", image, "has no layers")),
        [one] if !labelled => mapped(mount("bind", "/", one, &["bind", "rprivate", "ro"]), maps),
        // The shim mounts it, as it does the container's root; the options are those of the root.
        many => {
            let layers: Vec<_> = many.iter().map(|path| path.display().to_string()).collect();
            let mut options = vec!["ro".to_owned(), format!("lowerdir={}", layers.join(":"))];
            if let Some((uids, gids)) = maps.map(IdMaps::texts) {
                options.extend([format!("uidmap={uids}"), format!("gidmap={gids}")]);
            }
            let options: Vec<_> = options.iter().map(String::as_str).collect();
            mount("overlay", "/", "overlay", &options)
        }
    };
    result.set_destination(destination);
    Ok(result)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn asked(sub_path: &str) -> cri::Mount {
        cri::Mount {
            container_path: "/model".into(),
            readonly: true,
            image: Some(cri::ImageSpec { image: "registry.test/model".into(), ..Default::default() }),
            image_sub_path: sub_path.into(),
            ..Default::default()
        }
    }

    fn shown(sub_path: &str, layers: &[PathBuf], root: &Path) -> Result<String, String> {
        let mount = build(&asked(sub_path), layers, None, false).map_err(|error| error.to_string())?;
        let source = mount.source().as_ref().unwrap().display().to_string();
        let options = mount.options().as_ref().unwrap().join(",");
        Ok(format!("{source} {options}").replace(&format!("{}/", root.display()), ""))
    }

    #[test]
    fn layers_are_stacked_and_sub_paths_found() {
        let dir = tempfile::Builder::new().prefix("berth-spec-image-volume").tempdir_in("/run").unwrap();
        for path in ["top/etc", "bottom/etc", "bottom/only"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        std::fs::write(dir.path().join("top/file"), "x").unwrap();
        std::os::unix::fs::symlink("/only", dir.path().join("top/link")).unwrap();
        let layers = [dir.path().join("top"), dir.path().join("bottom")];
        let shown = |sub_path: &str| shown(sub_path, &layers, dir.path());
        assert_eq!(shown("").unwrap(), "overlay ro,lowerdir=top:bottom");
        assert_eq!(shown("etc").unwrap(), "overlay ro,lowerdir=top/etc:bottom/etc");
        assert_eq!(shown("only").unwrap(), "bottom/only bind,rprivate,ro");
        assert_eq!(shown("link").unwrap(), "bottom/only bind,rprivate,ro");
        assert!(shown("none").unwrap_err().contains("is not in the image"));
        assert!(shown("file").unwrap_err().contains("is no directory"));
        assert!(shown("../x").unwrap_err().contains("must be relative"));
        assert!(shown("/etc").unwrap_err().contains("must be relative"));
        let writable = cri::Mount { readonly: false, ..asked("") };
        assert!(build(&writable, &layers, None, false).unwrap_err().to_string().contains("read-only"));
        // What is bound shows the layer's own label.
        let labelled = build(&asked("only"), &layers, None, true).unwrap();
        assert_eq!(labelled.typ().as_deref(), Some("overlay"));
    }
}
