#![allow(clippy::unwrap_used)]

use super::*;
use crate::proto::nri::v1alpha1::{
    LinuxContainerUpdate, LinuxMemory, LinuxNamespace, OptionalInt64, OptionalString, PosixRlimit,
};

fn creation() -> Creation {
    Creation::new(Container {
        id: "new".into(),
        env: vec!["A=1".into(), "B=2=3".into()],
        annotations: [("kept".to_owned(), "x".to_owned()), ("gone".to_owned(), "x".to_owned())].into(),
        mounts: vec![mount("/proc"), mount("/data")],
        args: vec!["sh".into()],
        ..Default::default()
    })
}

fn mount(destination: &str) -> Mount {
    Mount { destination: destination.into(), ..Default::default() }
}

fn variable(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.into(), value: value.into() }
}

fn adjusting(adjust: ContainerAdjustment) -> CreateContainerResponse {
    CreateContainerResponse { adjust: Some(adjust), ..Default::default() }
}

fn memory(limit: i64) -> LinuxResources {
    let memory = LinuxMemory { limit: Some(OptionalInt64 { value: limit }), ..Default::default() };
    LinuxResources { memory: Some(memory), ..Default::default() }
}

fn update(id: &str, resources: LinuxResources, ignore_failure: bool) -> ContainerUpdate {
    let linux = LinuxContainerUpdate { resources: Some(resources) };
    ContainerUpdate { container_id: id.into(), linux: Some(linux), ignore_failure }
}

#[test]
fn the_next_plugin_sees_what_the_last_one_did() {
    let mut creation = creation();
    let adjust = ContainerAdjustment {
        env: vec![variable("-A", ""), variable("B", "new"), variable("C", "3")],
        annotations: [("-gone".to_owned(), String::new()), ("mine".to_owned(), "y".to_owned())].into(),
        mounts: vec![mount("-/data"), mount("/more")],
        args: vec!["env".into()],
        rlimits: vec![PosixRlimit { r#type: "RLIMIT_NOFILE".into(), hard: 2, soft: 1 }],
        ..Default::default()
    };
    creation.take("10-a", adjusting(adjust)).unwrap();
    let seen = &creation.container;
    assert_eq!(seen.env, ["B=new", "C=3"]);
    assert_eq!(seen.args, ["env"]);
    assert_eq!(seen.annotations.len(), 2);
    assert_eq!(seen.annotations["mine"], "y");
    let mounts: Vec<_> = seen.mounts.iter().map(|mount| mount.destination.as_str()).collect();
    assert_eq!(mounts, ["/proc", "/more"]);
    // The marks reach whoever changes the specification.
    assert!(creation.adjust.annotations.contains_key("-gone"));
    assert_eq!(creation.adjust.env[0].key, "-A");
    assert_eq!(creation.adjust.mounts[0].destination, "-/data");
}

#[test]
fn two_that_set_the_same_are_in_conflict() {
    let resources = LinuxContainerAdjustment { resources: Some(memory(1)), ..Default::default() };
    let namespace = LinuxNamespace { r#type: "-network".into(), ..Default::default() };
    let namespaces = LinuxContainerAdjustment { namespaces: vec![namespace], ..Default::default() };
    for adjust in [
        ContainerAdjustment { env: vec![variable("A", "2")], ..Default::default() },
        ContainerAdjustment { args: vec!["a".into()], ..Default::default() },
        ContainerAdjustment { mounts: vec![mount("/data")], ..Default::default() },
        ContainerAdjustment { annotations: [("k".to_owned(), "v".to_owned())].into(), ..Default::default() },
        ContainerAdjustment { linux: Some(resources), ..Default::default() },
        ContainerAdjustment { linux: Some(namespaces), ..Default::default() },
    ] {
        let mut creation = creation();
        creation.take("10-a", adjusting(adjust.clone())).unwrap();
        let error = creation.take("20-b", adjusting(adjust.clone())).unwrap_err();
        assert!(error.to_string().starts_with("10-a has set"), "{error}: {adjust:?}");
    }
}

#[test]
fn who_takes_away_may_set_anew() {
    let mut creation = creation();
    let first = ContainerAdjustment {
        env: vec![variable("A", "2")],
        args: vec!["first".into()],
        annotations: [("k".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    creation.take("10-a", adjusting(first)).unwrap();
    let second = ContainerAdjustment {
        env: vec![variable("-A", ""), variable("A", "3")],
        args: vec![String::new(), "second".into()],
        annotations: [("-k".to_owned(), String::new()), ("k".to_owned(), "2".to_owned())].into(),
        ..Default::default()
    };
    creation.take("20-b", adjusting(second)).unwrap();
    assert_eq!(creation.container.args, ["second"]);
    assert_eq!(creation.container.env, ["B=2=3", "A=3"]);
    assert_eq!(creation.adjust.annotations["k"], "2");
    let left: Vec<_> = creation.adjust.env.iter().map(|v| (v.key.as_str(), v.value.as_str())).collect();
    assert_eq!(left, [("-A", ""), ("A", "3")]);
}

#[test]
fn rdt_can_be_taken_away_and_set() {
    let mut creation = creation();
    let text = |value: &str| Some(OptionalString { value: value.to_owned() });
    let rdt = |clos_id, remove| {
        let rdt = LinuxRdt { clos_id, remove, ..Default::default() };
        let linux = LinuxContainerAdjustment { rdt: Some(rdt), ..Default::default() };
        adjusting(ContainerAdjustment { linux: Some(linux), ..Default::default() })
    };
    creation.take("10-a", rdt(text("gold"), false)).unwrap();
    assert!(creation.take("20-b", rdt(text("silver"), false)).is_err());
    creation.take("20-b", rdt(text("silver"), true)).unwrap();
    let adjust = creation.adjust.linux.unwrap().rdt.unwrap();
    assert_eq!((adjust.clos_id, adjust.remove), (text("silver"), true));
}

#[test]
fn updates_of_others_are_put_together() {
    let mut creation = creation();
    let pids = LinuxResources {
        pids: Some(crate::proto::nri::v1alpha1::LinuxPids { limit: 5 }),
        ..Default::default()
    };
    let answer = |updates| CreateContainerResponse { update: updates, ..Default::default() };
    creation.take("10-a", answer(vec![update("old", memory(1), true)])).unwrap();
    creation.take("20-b", answer(vec![update("old", pids, false)])).unwrap();
    // A conflict that may be ignored changes nothing; one that may not ends it.
    creation.take("30-c", answer(vec![update("old", memory(9), true)])).unwrap();
    assert!(creation.take("30-c", answer(vec![update("old", memory(9), false)])).is_err());
    assert!(matches!(
        creation.take("30-c", answer(vec![update("new", memory(9), false)])),
        Err(Error::OwnUpdate)
    ));
    let [merged] = creation.others.updates.as_slice() else { panic!("one update") };
    let resources = merged.linux.as_ref().unwrap().resources.as_ref().unwrap();
    assert_eq!(resources.memory.as_ref().unwrap().limit.unwrap().value, 1);
    assert_eq!(resources.pids.unwrap().limit, 5);
    assert!(!merged.ignore_failure);
}

#[test]
fn an_update_is_changed_in_turn() {
    let mut collected = Update::new("c", memory(1));
    let answer = |updates| UpdateContainerResponse { update: updates, ..Default::default() };
    let updates = vec![update("c", memory(2), false), update("d", memory(3), false)];
    collected.take("10-a", answer(updates)).unwrap();
    assert_eq!(collected.resources, memory(2));
    assert_eq!(collected.others.updates.len(), 1);
    collected.take("20-b", answer(vec![update("c", memory(4), true)])).unwrap();
    assert_eq!(collected.resources, memory(2));
    assert!(collected.take("20-b", answer(vec![update("c", memory(4), false)])).is_err());
}

#[test]
fn there_is_an_end_to_it() {
    let mut creation = creation();
    let adjust = ContainerAdjustment { env: vec![variable("A", "1"); MOST + 1], ..Default::default() };
    assert!(matches!(creation.take("10-a", adjusting(adjust)), Err(Error::TooMany(_))));
}
