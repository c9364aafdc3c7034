//! Uploads that break: a real registry behind a proxy that cuts connections and answers in its place.

use libtest_mimic::Trial;
use serde_json::json;

use crate::support::World;
use crate::support::image::{Image, Layer, Packing, noise};
use crate::support::proxy::{Proxy, Way};
use crate::support::registry::{Access, Registry};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_cut_connection_is_no_end,
        a_lost_place_is_asked_for,
        a_lost_upload_begins_anew,
        a_registry_without_pieces_gets_the_whole,
        a_mount_that_is_refused_is_an_upload,
        a_registry_that_never_gets_better_is_given_up,
    ]
}

/// An image whose second layer takes two pieces of 16 MiB and some more; it is here. Its name at `host`.
async fn large(world: &World, host: &str) -> (Image, String) {
    let layer = Layer::new().file("large", 0o644, &noise(34 << 20, 99));
    let image = Image::busybox(json!({"Cmd": ["true"]})).layer(layer, Packing::Plain);
    let source = world.registry.push("broken/source", "1", &image);
    world.berth_ok(&["pull", "--quiet", &source]);
    let name = format!("{host}/broken/target:1");
    world.berth_ok(&["tag", &source, &name]);
    (image, name)
}

/// An empty registry.
fn empty(world: &World) -> Registry {
    Registry::start(&world.netns, 5002, &world.disk.join("behind"), &world.run, &Access::default())
}

/// The registry has it, whole: it is taken from there, past the proxy.
async fn is_there(world: &World, registry: &Registry, image: &Image) {
    world.berth_ok(&["rmi", "--force", &image.id()]);
    let name = format!("{}/broken/target:1", registry.host());
    world.berth_ok(&["pull", "--quiet", &name]);
    assert_eq!(world.image_status(&name).await.unwrap().unwrap().id, image.id());
}

const UPLOADS: &str = "POST /v2/broken/target/blobs/uploads/";

async fn a_cut_connection_is_no_end(world: &mut World) {
    let registry = empty(world);
    let proxy = Proxy::start(&world.netns, &registry.host(), |request, before| match request {
        // Within the first piece, and within the second.
        _ if request.starts_with("PATCH") && before == 0 => Way::Cut(5 << 20),
        _ if request.starts_with("PATCH") && before == 2 => Way::Cut(1 << 20),
        _ => Way::Through,
    });
    let (image, name) = large(world, &proxy.host).await;
    world.berth_ok(&["push", "--quiet", &name]);
    // Where it stood was asked for. This registry gives an upload up when it has more of it than its last answer said: then it is
    // begun anew, once for each cut at the most. Configuration and two layers.
    assert!((3..=5).contains(&proxy.count(UPLOADS)), "{:?}", proxy.requests());
    assert!(proxy.count("GET /v2/broken/target/blobs/uploads/") >= 2, "{:?}", proxy.requests());
    is_there(world, &registry, &image).await;
}

async fn a_lost_place_is_asked_for(world: &mut World) {
    let registry = empty(world);
    let proxy = Proxy::start(&world.netns, &registry.host(), |request, before| match request {
        _ if request.starts_with("PATCH") && before == 1 => Way::Answer(416),
        _ => Way::Through,
    });
    let (image, name) = large(world, &proxy.host).await;
    world.berth_ok(&["push", "--quiet", &name]);
    assert_eq!(proxy.count(UPLOADS), 3, "{:?}", proxy.requests());
    assert_eq!(proxy.count("PATCH"), 4, "three pieces and one that was refused: {:?}", proxy.requests());
    is_there(world, &registry, &image).await;
}

async fn a_lost_upload_begins_anew(world: &mut World) {
    let registry = empty(world);
    let proxy = Proxy::start(&world.netns, &registry.host(), |request, before| {
        let state = request.starts_with("GET /v2/broken/target/blobs/uploads/");
        match request {
            // What a registry says that was restarted, or cleaned up: it knows nothing of that upload.
            _ if request.starts_with("PATCH") && before == 1 => Way::Answer(404),
            _ if state => Way::Answer(404),
            _ => Way::Through,
        }
    });
    let (image, name) = large(world, &proxy.host).await;
    world.berth_ok(&["push", "--quiet", &name]);
    assert_eq!(proxy.count(UPLOADS), 4, "one more: {:?}", proxy.requests());
    assert_eq!(
        proxy.count("PATCH"),
        5,
        "two, of which one failed, and all three anew: {:?}",
        proxy.requests()
    );
    is_there(world, &registry, &image).await;
}

async fn a_registry_without_pieces_gets_the_whole(world: &mut World) {
    let registry = empty(world);
    let proxy = Proxy::start(&world.netns, &registry.host(), |request, _| {
        if request.starts_with("PATCH") { Way::Answer(405) } else { Way::Through }
    });
    let (image, name) = large(world, &proxy.host).await;
    world.berth_ok(&["push", "--quiet", &name]);
    assert_eq!(proxy.count("PATCH"), 1, "{:?}", proxy.requests());
    is_there(world, &registry, &image).await;
}

async fn a_mount_that_is_refused_is_an_upload(world: &mut World) {
    let registry = empty(world);
    let proxy = Proxy::start(&world.netns, &registry.host(), |_, _| Way::Through);
    // Pulled from a repository of that host, which then loses it: the layers can't be mounted from there.
    let image = Image::busybox(json!({"Cmd": ["true"]}));
    registry.push("broken/elsewhere", "1", &image);
    let (source, name) =
        (format!("{}/broken/elsewhere:1", proxy.host), format!("{}/broken/target:1", proxy.host));
    world.berth_ok(&["pull", "--quiet", &source]);
    for blob in image.blobs() {
        let path = format!("/v2/broken/elsewhere/blobs/{}", blob.digest);
        let gone = registry.request("DELETE", &path, &[], &[]).unwrap();
        assert_eq!(gone.status, 202, "{}", gone.text());
    }
    world.berth_ok(&["tag", &source, &name]);
    world.berth_ok(&["push", "--quiet", &name]);
    let mounts = proxy.requests().iter().filter(|request| request.contains("mount=")).count();
    assert_eq!(mounts, 2, "configuration and layer: {:?}", proxy.requests());
    assert_eq!(proxy.count(UPLOADS), 2, "the refused mount is the upload: {:?}", proxy.requests());
    is_there(world, &registry, &image).await;
}

async fn a_registry_that_never_gets_better_is_given_up(world: &mut World) {
    let registry = empty(world);
    let proxy = Proxy::start(&world.netns, &registry.host(), |request, _| {
        if request.starts_with("PATCH") { Way::Cut(0) } else { Way::Through }
    });
    let (_, name) = large(world, &proxy.host).await;
    let output = world.berth(&["push", "--quiet", &name]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&name) && said.lines().count() == 1, "{said}");
    assert_eq!(proxy.count("PUT /v2/broken/target/manifests/"), 0, "no manifest of what is not there");
}
