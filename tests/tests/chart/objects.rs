//! What the chart rendered, to look things up in.

use serde_json::Value;
use spegel_tests::Chart;

/// All objects, hooks as well.
#[derive(Clone, Debug)]
pub(crate) struct Objects(pub(crate) Vec<Value>);

impl Objects {
    pub(crate) fn render(chart: &Chart) -> Self {
        Self(chart.render().unwrap_or_else(|error| panic!("{}: {error}", chart.values)))
    }

    pub(crate) fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        self.0.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
    }

    /// The object, or null: whatever is looked up in that is null too.
    pub(crate) fn get(&self, kind: &str, name: &str) -> &Value {
        self.find(kind, name).unwrap_or(&Value::Null)
    }

    /// The pods' specifications, by the names of what makes them.
    pub(crate) fn pods(&self) -> Vec<(&str, &Value)> {
        let spec = |object| match kind(object) {
            "DaemonSet" => Some((name(object), &object["spec"]["template"]["spec"])),
            "Pod" => Some((name(object), &object["spec"])),
            _ => None,
        };
        self.0.iter().filter_map(spec).collect()
    }

    /// Every container of ours: not the extra ones.
    pub(crate) fn own_containers(&self) -> Vec<&Value> {
        let own = ["configuration", "registry", "cleanup", "cleanup-wait"];
        let all = self.pods().into_iter().flat_map(|(_, pod)| containers(pod));
        all.filter(|container| own.contains(&name_of(container))).collect()
    }

    /// A container by its name, which no two pods share; null if there is none.
    pub(crate) fn container(&self, name: &str) -> &Value {
        let found = self.own_containers().into_iter().find(|container| container["name"] == name);
        found.unwrap_or(&Value::Null)
    }

    /// The values of a flag, in order.
    pub(crate) fn flag(&self, container: &str, flag: &str) -> Vec<&str> {
        let arguments = list(&self.container(container)["args"]);
        let values =
            arguments.filter_map(|argument| argument.as_str()?.strip_prefix(flag)?.strip_prefix('='));
        values.collect()
    }

    /// A mount of a container; null if there is none.
    pub(crate) fn mount(&self, container: &str, volume: &str) -> &Value {
        let found = mounts(self.container(container)).find(|mount| mount["name"] == volume);
        found.unwrap_or(&Value::Null)
    }

    /// A volume of the mirror's pods; null if there is none.
    pub(crate) fn volume(&self, name: &str) -> &Value {
        let pod = &self.get("DaemonSet", "spegel")["spec"]["template"]["spec"];
        list(&pod["volumes"]).find(|volume| volume["name"] == name).unwrap_or(&Value::Null)
    }

    /// The variable of a container; null if there is none.
    pub(crate) fn variable(&self, container: &str, name: &str) -> &Value {
        list(&self.container(container)["env"])
            .find(|variable| variable["name"] == name)
            .unwrap_or(&Value::Null)
    }
}

pub(crate) fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

pub(crate) fn name(object: &Value) -> &str {
    name_of(&object["metadata"])
}

fn name_of(value: &Value) -> &str {
    value["name"].as_str().unwrap_or_default()
}

/// The elements of a list; none of anything else.
pub(crate) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The containers of a pod, init containers first.
pub(crate) fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["initContainers"]).chain(list(&pod["containers"]))
}

pub(crate) fn mounts(container: &Value) -> impl Iterator<Item = &Value> {
    list(&container["volumeMounts"])
}
