//! Random but well-formed messages to every call of the CRI: fields missing, contradictory, absurd.
//!
//! The messages are made from the proto's descriptors, or from one that is good by changing some of it. Half of the ids are of
//! pods and containers that are there. The choices are the same in every run, as a test's should be; `BERTH_FUZZ_SEED` makes
//! others (any number, or `random`), `BERTH_FUZZ_CALLS` and `BERTH_FUZZ_SECONDS` bound the run.
//!
//! Every call must be answered, never by UNKNOWN or INTERNAL: bad input has better codes. Panics of the daemon, what it
//! leaves behind, and descriptors and memory that it goes on to hold are found at the end.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_cri::v1 as cri;
use libtest_mimic::Trial;
use prost_reflect::prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, MethodDescriptor,
    ReflectMessage, Value,
};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

use crate::support::measure::{anonymous, descriptors};
use crate::support::runtime::Options;
use crate::support::streaming::Streams;
use crate::support::{World, container, patience};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    let options = Options { limit: 3600, ..Options::default() };
    trials![options = options; every_call]
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn seed() -> u64 {
    const SEED: &str = "BERTH_FUZZ_SEED";
    if std::env::var(SEED).is_ok_and(|text| text == "random") {
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        return u64::from(clock.subsec_nanos()) << 8 | 1;
    }
    number(SEED, 1).max(1)
}

// === chance ===

/// xorshift64*: small, and the same everywhere.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % bound
    }

    /// One in `bound`.
    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

// === messages ===

/// What strings are drawn from.
struct Words {
    pods: Vec<String>,
    containers: Vec<String>,
    images: Vec<String>,
    cgroup: String,
    run: String,
}

const ODD: [&str; 12] =
    ["", " ", "..", "/", "a/../../b", "\u{0}", "x\ny", "\u{1f6a2}", "-", "%s%n", "0", "a=b,c:d"];

impl Words {
    fn refresh(&mut self, pods: Vec<cri::PodSandbox>, containers: Vec<cri::Container>) {
        self.pods = pods.into_iter().map(|pod| pod.id).collect();
        self.containers = containers.into_iter().map(|container| container.id).collect();
    }

    /// A text for the field of this name. Paths and cgroups are kept where the test cleans up.
    fn text(&self, field: &str, chance: &mut Chance) -> String {
        let odd = |chance: &mut Chance| match chance.below(20) {
            0 => "x".repeat(300),
            1 => "long ".repeat(20_000),
            _ => (*chance.of(&ODD)).to_owned(),
        };
        let own: Vec<String> = match field {
            "pod_sandbox_id" | "sandbox_id" => self.pods.clone(),
            "container_id" | "target_id" => self.containers.clone(),
            "id" => [self.pods.clone(), self.containers.clone()].concat(),
            "image" | "user_specified_image" | "image_ref" => self.images.clone(),
            "cgroup_parent" => vec![String::new(), format!("{}/fuzz", self.cgroup)],
            "log_directory" => vec![format!("{}/logs", self.run), String::new()],
            "log_path" => vec!["fuzz.log".into(), "a/b.log".into(), "../up.log".into()],
            "host_path" => vec![format!("{}/logs", self.run), format!("{}/absent", self.run)],
            "location" | "path" => vec![format!("{}/absent/file", self.run)],
            "container_path" | "working_dir" | "mountpoint" => {
                vec!["/data".into(), "/".into(), "relative".into(), "/etc/passwd".into(), "/proc".into()]
            }
            "command" | "args" | "cmd" => {
                vec!["true".into(), "echo".into(), "/bin/false".into(), "absent".into()]
            }
            "runtime_handler" => vec![String::new(), "berth".into(), "runc".into()],
            "pod_cidr" => vec![
                "10.85.0.0/16".into(),
                "10.85.0.0/16,fd85:be:27::/64".into(),
                "300.0.0.0/8".into(),
                "::/0".into(),
            ],
            "add_capabilities" | "drop_capabilities" => {
                vec!["ALL".into(), "NET_ADMIN".into(), "NONE_SUCH".into()]
            }
            "cpuset_cpus" | "cpuset_mems" => vec!["0".into(), "0-1".into(), "7-3".into(), "99999".into()],
            "page_size" => vec!["2MB".into(), "1GB".into(), "3XB".into()],
            "host_ip" => vec!["127.0.0.1".into(), "::1".into(), "300.1.1.1".into()],
            "server_address" | "auth" | "identity_token" => vec!["127.0.0.1:1".into()],
            "localhost_ref" | "seccomp_profile_path" | "apparmor_profile" => {
                vec!["localhost/absent".into(), "runtime/default".into(), "unconfined".into()]
            }
            _ => vec!["name".into(), "default".into(), "main".into()],
        };
        // Where a wrong one reaches what is not the test's own.
        let kept = matches!(field, "cgroup_parent" | "host_path" | "log_directory" | "location");
        if !own.is_empty() && (kept || !chance.one_in(3)) {
            return chance.of(&own).clone();
        }
        if kept {
            return String::new();
        }
        match chance.below(4) {
            0 => "e".repeat(64),
            // The beginning of an id stands for it.
            1 => self
                .containers
                .first()
                .or(self.pods.first())
                .map_or_else(String::new, |id| id[..8].to_owned()),
            _ => odd(chance),
        }
    }
}

struct Maker<'a> {
    words: &'a Words,
    chance: &'a mut Chance,
}

impl Maker<'_> {
    fn message(&mut self, descriptor: &MessageDescriptor, depth: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        for field in descriptor.fields() {
            if self.chance.one_in(2) {
                let value = self.value(&field, depth);
                message.set_field(&field, value);
            }
        }
        message
    }

    /// Changes some fields, here or below.
    fn change(&mut self, message: &mut DynamicMessage, depth: usize) {
        let fields: Vec<_> = message.descriptor().fields().collect();
        if fields.is_empty() {
            return;
        }
        for _ in 0..=self.chance.below(2) {
            let field = self.chance.of(&fields).clone();
            if let Value::Message(inner) = message.get_field_mut(&field)
                && depth < 6
                && !self.chance.one_in(4)
            {
                self.change(inner, depth + 1);
                continue;
            }
            match self.chance.below(3) {
                0 => message.clear_field(&field),
                _ => {
                    let value = self.value(&field, depth);
                    message.set_field(&field, value);
                }
            }
        }
    }

    fn value(&mut self, field: &FieldDescriptor, depth: usize) -> Value {
        if field.is_map() {
            let Kind::Message(entry) = field.kind() else { unreachable!("maps have entries") };
            let (key, value) = (entry.map_entry_key_field(), entry.map_entry_value_field());
            let count = self.chance.below(3);
            let entries = (0..count).filter_map(|_| {
                let Value::String(name) = self.single(&key, field.name(), depth) else { return None };
                Some((MapKey::String(name), self.single(&value, field.name(), depth)))
            });
            return Value::Map(entries.collect());
        }
        if field.is_list() {
            let count = if self.chance.one_in(50) { 200 } else { self.chance.below(4) };
            return Value::List((0..count).map(|_| self.single(field, field.name(), depth + 1)).collect());
        }
        self.single(field, field.name(), depth)
    }

    fn single(&mut self, field: &FieldDescriptor, name: &str, depth: usize) -> Value {
        let chance = &mut *self.chance;
        match field.kind() {
            Kind::Message(descriptor) if depth > 6 => Value::Message(DynamicMessage::new(descriptor)),
            Kind::Message(descriptor) => Value::Message(self.message(&descriptor, depth + 1)),
            Kind::Enum(_) => Value::EnumNumber(*chance.of(&[0, 0, 1, 1, 2, 3, 4, -1, 99, i32::MAX])),
            Kind::String => Value::String(self.words.text(name, chance)),
            Kind::Bytes => Value::Bytes(vec![0; chance.below(64)].into()),
            Kind::Bool => Value::Bool(chance.one_in(2)),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
                Value::I32(*chance.of(&[0, 1, 80, -1, 65_536, i32::MIN, i32::MAX]))
            }
            // A wait that was asked for is no fault: it is kept short.
            Kind::Int64 if name == "timeout" => Value::I64(*chance.of(&[0, 1, 1, -1, i64::MIN])),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
                Value::I64(*chance.of(&[0, 1, 2, 1000, 65_534, 1 << 26, -1, -1000, i64::MIN, i64::MAX]))
            }
            Kind::Uint32 | Kind::Fixed32 => Value::U32(*chance.of(&[0, 1, 2, 1000, 65_536, u32::MAX])),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(*chance.of(&[0, 1, 1000, 1 << 26, 1 << 40, u64::MAX])),
            Kind::Double => Value::F64(*chance.of(&[0.0, -1.0, f64::NAN, f64::INFINITY])),
            Kind::Float => Value::F32(*chance.of(&[0.0, -1.0, f32::NAN])),
        }
    }
}

/// A request that is good, where there is something to be good at.
fn good(call: &str, words: &Words, world: &World, serial: usize) -> Option<Vec<u8>> {
    let image = words.images[0].clone();
    let pod = || {
        let mut pod = world.pod(&format!("fuzz-{}", serial % 40));
        pod.linux.as_mut().unwrap().cgroup_parent = format!("{}/fuzz", world.cgroup);
        pod
    };
    let pod_id = || words.pods.last().cloned().unwrap_or_default();
    let id = || words.containers.last().cloned().unwrap_or_default();
    let Streams { stdin, stdout, stderr, tty } = crate::support::streaming::OUTPUT;
    Some(match call {
        "RunPodSandbox" => {
            cri::RunPodSandboxRequest { config: Some(pod()), runtime_handler: String::new() }.encode_to_vec()
        }
        "CreateContainer" => cri::CreateContainerRequest {
            pod_sandbox_id: pod_id(),
            config: Some(container(&format!("c-{}", serial % 40), &image, &["sleep", "100000"])),
            sandbox_config: Some(pod()),
        }
        .encode_to_vec(),
        "StartContainer" => cri::StartContainerRequest { container_id: id() }.encode_to_vec(),
        "StopContainer" => cri::StopContainerRequest { container_id: id(), timeout: 0 }.encode_to_vec(),
        "UpdateContainerResources" => cri::UpdateContainerResourcesRequest {
            container_id: id(),
            linux: Some(cri::LinuxContainerResources { cpu_shares: 512, ..Default::default() }),
            ..Default::default()
        }
        .encode_to_vec(),
        "ExecSync" => {
            cri::ExecSyncRequest { container_id: id(), cmd: vec!["true".into()], timeout: 5 }.encode_to_vec()
        }
        "Exec" => {
            cri::ExecRequest { container_id: id(), cmd: vec!["true".into()], tty, stdin, stdout, stderr }
                .encode_to_vec()
        }
        "Attach" => cri::AttachRequest { container_id: id(), tty, stdin, stdout, stderr }.encode_to_vec(),
        "PullImage" => cri::PullImageRequest {
            image: Some(crate::support::world::image_spec(&image)),
            ..Default::default()
        }
        .encode_to_vec(),
        _ => return None,
    })
}

/// The fields that are set.
fn shown(message: &DynamicMessage) -> String {
    fn value(of: &Value) -> String {
        match of {
            Value::Message(message) => shown(message),
            Value::List(list) => format!("[{}]", list.iter().map(value).collect::<Vec<_>>().join(", ")),
            other => format!("{other:?}"),
        }
    }
    let fields = message.fields().map(|(field, of)| format!("{}: {}", field.name(), value(of)));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
}

// === calls ===

/// Messages that are bytes already.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(buffer, &item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let length = bytes::Buf::remaining(buffer);
        let mut item = vec![0; length];
        bytes::Buf::copy_to_slice(buffer, &mut item);
        Ok(Some(item))
    }
}

/// Calls, and waits for the answer; of a stream for its first messages.
async fn call(world: &World, method: &MethodDescriptor, message: Vec<u8>) -> Result<(), Status> {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let path = path.parse().unwrap();
    let mut client = tonic::client::Grpc::new(world.channel()).max_decoding_message_size(64 << 20);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    if !method.is_server_streaming() {
        return client.unary(Request::new(message), path, Raw).await.map(drop);
    }
    let mut stream = client.server_streaming(Request::new(message), path, Raw).await?.into_inner();
    // Events go on for ever; the others end by themselves.
    let reading = async {
        while stream.message().await?.is_some() {}
        Ok(())
    };
    tokio::time::timeout(Duration::from_millis(300), reading).await.unwrap_or(Ok(()))
}

fn methods(scratch: &Path) -> Vec<MethodDescriptor> {
    // The tests may run where the sources are not.
    std::fs::write(scratch.join("api.proto"), include_str!("../../proto/runtime/v1/api.proto")).unwrap();
    let set = protox::compile(["api.proto"], [scratch]).unwrap();
    let pool = DescriptorPool::from_file_descriptor_set(set).unwrap();
    let methods: Vec<_> = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()).collect();
    assert!(methods.len() > 35, "{} calls", methods.len());
    // What changes most is called most.
    let often = |method: &MethodDescriptor| match method.name() {
        "CreateContainer" => 8,
        "RunPodSandbox" | "StartContainer" | "UpdateContainerResources" => 4,
        "ExecSync" | "Exec" | "StopContainer" | "UpdatePodSandboxResources" => 2,
        _ => 1,
    };
    methods.into_iter().flat_map(|method| std::iter::repeat_n(method.clone(), often(&method))).collect()
}

async fn every_call(world: &mut World) {
    let seed = seed();
    let (calls, seconds) = (number("BERTH_FUZZ_CALLS", 4_000), number("BERTH_FUZZ_SECONDS", 60));
    println!("BERTH_FUZZ_SEED={seed}");
    std::fs::create_dir_all(world.run.join("logs")).unwrap();
    let mut words = Words {
        pods: Vec::new(),
        containers: Vec::new(),
        images: vec![world.image("busybox").await, world.reference("users"), "127.0.0.1:1/absent:1".into()],
        cgroup: world.cgroup.clone(),
        run: world.run.display().to_string(),
    };
    let (methods, mut chance) = (methods(&world.run), Chance(seed));
    let mut codes: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    let mut wrong: BTreeMap<String, String> = BTreeMap::new();
    let (pid, before) =
        (world.daemon.pid(), (descriptors(world.daemon.pid()), anonymous(world.daemon.pid())));
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let mut done = 0;
    for serial in 0..usize::try_from(calls).unwrap() {
        if Instant::now() > deadline {
            break;
        }
        if serial % 20 == 0 {
            tidy(world, &mut words).await;
        }
        let method = chance.of(&methods).clone();
        let good = good(method.name(), &words, world, serial).filter(|_| !chance.one_in(3));
        let mut maker = Maker { words: &words, chance: &mut chance };
        let message = match good {
            Some(bytes) => {
                let mut message = DynamicMessage::decode(method.input(), bytes.as_slice()).unwrap();
                // Of a message of one field little is left once that is changed.
                let small = method.input().fields().len() <= 2;
                if maker.chance.one_in(3) == small {
                    maker.change(&mut message, 0);
                }
                message
            }
            None => maker.message(&method.input(), 0),
        };
        let answer = tokio::time::timeout(patience(60), call(world, &method, message.encode_to_vec())).await;
        let said = || {
            let mut text = shown(&message);
            if let Some((end, _)) = text.char_indices().nth(3000) {
                text.truncate(end);
            }
            text
        };
        let code = match &answer {
            Ok(Ok(())) => Code::Ok,
            Ok(Err(status)) => status.code(),
            Err(_) => panic!("call {serial} ({}) is not answered: {}", method.name(), said()),
        };
        if matches!(code, Code::Unknown | Code::Internal | Code::DataLoss) {
            let status = answer.unwrap().unwrap_err();
            let key = format!(
                "{} {:?}: {}",
                method.name(),
                code,
                status.message().chars().take(300).collect::<String>()
            );
            wrong.entry(key).or_insert_with(said);
        }
        *codes.entry(method.name().to_owned()).or_default().entry(format!("{code:?}")).or_default() += 1;
        assert!(world.daemon.ended().is_none(), "the daemon ended at call {serial}: {}", said());
        done += 1;
    }
    for (name, codes) in &codes {
        println!("{name}: {codes:?}");
    }
    println!("{done} calls");
    for (what, message) in wrong.iter().take(40) {
        println!("WRONG {what}\n    {message}");
    }
    assert!(wrong.is_empty(), "{} answers with a code that tells nothing (seed {seed})", wrong.len());
    clear(world).await;
    let deadline = crate::support::within(30);
    while descriptors(pid) > before.0 + 4 || anonymous(pid) > before.1 + (48 << 10) {
        assert!(
            Instant::now() < deadline,
            "descriptors and KiB {before:?} before, {} and {} after",
            descriptors(pid),
            anonymous(pid)
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Notes what is there; removes the oldest pods, so that the machine stays small.
async fn tidy(world: &World, words: &mut Words) {
    let mut pods = world.list_pods().await.unwrap();
    pods.sort_by_key(|pod| pod.created_at);
    let surplus = pods.len().saturating_sub(6);
    for pod in pods.drain(..surplus) {
        world.remember(&pod.id);
        world.stop_pod(&pod.id).await.unwrap();
        world.remove_pod(&pod.id).await.unwrap();
    }
    pods.iter().for_each(|pod| world.remember(&pod.id));
    let mut containers = world.list_containers().await.unwrap();
    containers.sort_by_key(|container| container.created_at);
    containers.iter().for_each(|container| world.remember(&container.id));
    words.refresh(pods, containers);
}

async fn clear(world: &World) {
    for pod in world.list_pods().await.unwrap() {
        world.remember(&pod.id);
        world.stop_pod(&pod.id).await.unwrap();
        world.remove_pod(&pod.id).await.unwrap();
    }
    // A pool that was set to something else would hold the rest up.
    assert!(world.list_containers().await.unwrap().is_empty());
}
