//! `berth images`.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use berth::proto::runtime::v1::{Image, ListImagesRequest};
use clap::Args;

use crate::client::Client;
use crate::failure::Answer;
use crate::options::listing::Listing;
use crate::output::table::{Cell, Table};
use crate::output::{self, human};
use crate::view::ImageView;

/// Options of `images`.
#[derive(Debug, Args)]
pub(crate) struct Images {
    /// Only images with this in a name
    #[arg(value_name = "TEXT")]
    text: Option<String>,
    /// Show digests
    #[arg(long)]
    digests: bool,
    #[command(flatten)]
    listing: Listing,
}

impl Images {
    /// Lists them.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let answer = client.images.list_images(ListImagesRequest { filter: None }).await.answer();
        let mut images = answer.context("listing images")?.images;
        if let Some(text) = &self.text {
            images.retain(|image| has(image, text));
        }
        let filters = self.listing.filters()?;
        let mut kept = Vec::new();
        for image in images {
            if filters.keep(&ImageView::from(&image))? {
                kept.push(image);
            }
        }
        let mut images = kept;
        images.sort_by(|one, other| names(one).cmp(&names(other)));
        if self.listing.quiet {
            let ids: BTreeSet<String> =
                images.iter().map(|image| human::short_id(&image.id, self.listing.no_trunc)).collect();
            let lines: String = ids.iter().map(|id| format!("{id}\n")).collect();
            output::print(&lines)?;
        } else if !self.listing.print(&images.iter().map(ImageView::from).collect::<Vec<_>>())? {
            output::print(&self.table(&images).render(output::colours()))?;
        }
        Ok(0)
    }

    fn table(&self, images: &[Image]) -> Table {
        let mut table = if self.digests {
            Table::new(&["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "SIZE"])
        } else {
            Table::new(&["REPOSITORY", "TAG", "IMAGE ID", "SIZE"])
        };
        for image in images {
            let id = || Cell::from(human::short_id(&image.id, self.listing.no_trunc));
            let size = || Cell::from(human::size(image.size));
            for (repository, tag, digest) in rows(image) {
                if self.digests {
                    let digest = human::short_id(digest, self.listing.no_trunc);
                    table.row([repository.into(), tag.into(), digest.into(), id(), size()]);
                } else {
                    table.row([repository.into(), tag.into(), id(), size()]);
                }
            }
        }
        table
    }
}

const NONE: &str = "<none>";

/// Repository, tag and digest of each name of an image; one row of `<none>` where it has no name.
fn rows(image: &Image) -> Vec<(&str, &str, &str)> {
    let digests = || image.repo_digests.iter().filter_map(|name| name.split_once('@'));
    if image.repo_tags.is_empty() {
        let (repository, digest) = digests().next().unwrap_or((NONE, NONE));
        return vec![(repository, NONE, digest)];
    }
    image
        .repo_tags
        .iter()
        .map(|name| {
            // The colon before a slash is a registry's port.
            let (repository, tag) =
                name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).unwrap_or((name, NONE));
            let digest = digests().find(|(other, _)| *other == repository).map_or(NONE, |(_, digest)| digest);
            (repository, tag, digest)
        })
        .collect()
}

/// An image in one line: its names and short id.
pub(crate) fn title(image: &Image) -> String {
    let id = human::short_id(&image.id, false);
    match image.repo_tags.as_slice() {
        [] => image.repo_digests.first().map_or(id.clone(), |name| format!("{name} ({id})")),
        tags => format!("{} ({id})", tags.join(", ")),
    }
}

fn names(image: &Image) -> (&[String], &[String], &str) {
    (&image.repo_tags, &image.repo_digests, &image.id)
}

fn has(image: &Image, text: &str) -> bool {
    image.repo_tags.iter().chain(&image.repo_digests).any(|name| name.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(tags: &[&str], digests: &[&str]) -> Image {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Image {
            id: "sha256:0123456789abcdef".into(),
            repo_tags: owned(tags),
            repo_digests: owned(digests),
            size: 4_261_000,
            ..Image::default()
        }
    }

    #[test]
    fn a_row_for_each_name() {
        let image = image(&["host:5000/app:1", "host:5000/app:latest"], &["host:5000/app@sha256:ab"]);
        assert_eq!(
            rows(&image),
            [("host:5000/app", "1", "sha256:ab"), ("host:5000/app", "latest", "sha256:ab")]
        );
    }

    #[test]
    fn images_without_a_tag_or_name() {
        assert_eq!(rows(&image(&[], &["a/b@sha256:cd"])), [("a/b", NONE, "sha256:cd")]);
        assert_eq!(rows(&image(&[], &[])), [(NONE, NONE, NONE)]);
    }

    #[test]
    fn the_table() {
        let listing = Listing::default();
        let command = Images { text: None, digests: false, listing };
        let table = command.table(&[image(&["docker.io/library/busybox:1"], &[])]);
        assert_eq!(
            table.render(false),
            "REPOSITORY                 TAG  IMAGE ID      SIZE\n\
             docker.io/library/busybox  1    0123456789ab  4.2MB\n"
        );
    }

    #[test]
    fn the_filter_looks_at_all_names() {
        let image = image(&["docker.io/library/nginx:1"], &["docker.io/library/nginx@sha256:ab"]);
        assert!(has(&image, "nginx") && has(&image, "sha256:ab") && !has(&image, "busybox"));
    }
}
