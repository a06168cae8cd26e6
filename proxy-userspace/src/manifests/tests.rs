//! Real files in a folder of their own, changed the ways people and kubelets change them.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::mpsc::{Receiver, channel};

use super::*;

/// A folder that goes when the test does.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("sluice-manifests-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn service(name: &str) -> String {
    format!("kind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.0.0.1, ports: [{{port: 80}}]}}\n")
}

/// The Services of the next complete list.
async fn services(news: &mut Receiver<News>) -> Vec<String> {
    loop {
        if let Change::Service(Event::Reset(services)) = news.recv().await.unwrap().change {
            return services.into_iter().map(|service| service.metadata.name).collect();
        }
    }
}

async fn started(paths: &[PathBuf]) -> Receiver<News> {
    let (sender, receiver) = channel(64);
    start(paths, "node-1", &sender).await.unwrap();
    receiver
}

fn read_problems(paths: &[PathBuf]) -> Vec<String> {
    Tree::new(paths).read().iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn files_that_come_change_and_go_are_followed() {
    let scratch = Scratch::new();
    scratch.write("a.yaml", service("a"));
    scratch.write("notes.txt", "not: [a manifest");
    let mut changes = started(std::slice::from_ref(&scratch.0)).await;
    assert_eq!(services(&mut changes).await, ["a"]);
    scratch.write("b.json", r#"{"kind": "Service", "metadata": {"name": "b"}, "spec": {"clusterIP": "10.0.0.2"}}"#);
    assert_eq!(services(&mut changes).await, ["a", "b"]);
    scratch.write(".new", service("c"));
    fs::rename(scratch.path(".new"), scratch.path("a.yaml")).unwrap();
    assert_eq!(services(&mut changes).await, ["b", "c"]);
    fs::remove_file(scratch.path("b.json")).unwrap();
    assert_eq!(services(&mut changes).await, ["c"]);
}

#[tokio::test]
async fn a_single_file_is_followed_through_atomic_replacement() {
    let scratch = Scratch::new();
    scratch.write("a.yaml", service("a"));
    let mut changes = started(&[scratch.path("a.yaml")]).await;
    assert_eq!(services(&mut changes).await, ["a"]);
    for name in ["b", "c"] {
        scratch.write("new", service(name));
        fs::rename(scratch.path("new"), scratch.path("a.yaml")).unwrap();
        assert_eq!(services(&mut changes).await, [name]);
    }
}

#[tokio::test]
async fn a_config_map_swap_is_followed() {
    let scratch = Scratch::new();
    for (version, name) in [("..v1", "a"), ("..v2", "b")] {
        fs::create_dir(scratch.path(version)).unwrap();
        scratch.write(&format!("{version}/web.yaml"), service(name));
    }
    symlink("..v1", scratch.path("..data")).unwrap();
    symlink("..data/web.yaml", scratch.path("web.yaml")).unwrap();
    let mut changes = started(std::slice::from_ref(&scratch.0)).await;
    assert_eq!(services(&mut changes).await, ["a"]);
    symlink("..v2", scratch.path("..data_tmp")).unwrap();
    fs::rename(scratch.path("..data_tmp"), scratch.path("..data")).unwrap();
    assert_eq!(services(&mut changes).await, ["b"]);
}

#[tokio::test]
async fn a_broken_file_keeps_its_last_good_state_and_the_others_go_on() {
    let scratch = Scratch::new();
    scratch.write("a.yaml", service("a"));
    scratch.write("b.yaml", service("b"));
    let mut changes = started(std::slice::from_ref(&scratch.0)).await;
    assert_eq!(services(&mut changes).await, ["a", "b"]);
    scratch.write("a.yaml", "kind: Service\nspec: [\n");
    scratch.write("c.yaml", service("c"));
    assert_eq!(services(&mut changes).await, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_folder_that_vanishes_keeps_serving_and_is_read_when_it_returns() {
    let scratch = Scratch::new();
    let folder = scratch.path("manifests");
    fs::create_dir(&folder).unwrap();
    scratch.write("manifests/a.yaml", service("a"));
    let mut tree = Tree::new(std::slice::from_ref(&folder));
    assert!(tree.read().is_empty());
    fs::remove_dir_all(&folder).unwrap();
    let problems = tree.read();
    assert!(
        problems[0].to_string().ends_with("manifests: cannot be read: No such file or directory (os error 2)"),
        "{problems:?}"
    );
    assert_eq!(tree.objects().len(), 1);
    fs::create_dir(&folder).unwrap();
    assert!(tree.read().is_empty());
    assert!(tree.objects().is_empty());
}

#[tokio::test]
async fn a_broken_file_at_the_start_is_an_error() {
    let scratch = Scratch::new();
    scratch.write("a.yaml", "kind: [\n");
    let (sender, _receiver) = channel(64);
    let error = start(std::slice::from_ref(&scratch.0), "node-1", &sender).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{}/a.yaml:1: expected string scalar, in `kind: [`", scratch.0.display()));
}

#[test]
fn of_two_files_with_one_object_the_first_by_path_counts() {
    let scratch = Scratch::new();
    scratch.write("b.yaml", service("web").replace("10.0.0.1", "10.0.0.2"));
    scratch.write("a.yaml", service("web"));
    let mut tree = Tree::new(std::slice::from_ref(&scratch.0));
    assert!(tree.read().is_empty());
    let merged = merge(tree.objects(), "node-1");
    assert_eq!(merged.services.len(), 1);
    assert_eq!(merged.services[0].spec.cluster_ip.as_deref(), Some("10.0.0.1"));
}

#[test]
fn what_the_server_would_not_send_is_left_out() {
    let scratch = Scratch::new();
    let label = |name: &str| format!("labels: {{kubernetes.io/service-name: web, service.kubernetes.io/{name}: \"\"}}");
    scratch
        .write("a.yaml", service("web").replace("name: web", &format!("name: web, {}", label("service-proxy-name"))));
    scratch.write("b.yaml", format!("kind: EndpointSlice\nmetadata: {{name: s, {}}}\n", label("headless")));
    scratch.write("c.yaml", "kind: Node\nmetadata: {name: node-1}\n---\nkind: Node\nmetadata: {name: node-2}\n");
    let mut tree = Tree::new(std::slice::from_ref(&scratch.0));
    assert_eq!(tree.read(), []);
    let merged = merge(tree.objects(), "node-1");
    assert_eq!((merged.services.len(), merged.slices.len(), merged.nodes.len()), (0, 0, 1));
}

#[test]
fn a_loop_of_symlinks_costs_nothing_that_is_beside_it() {
    let scratch = Scratch::new();
    symlink(&scratch.0, scratch.path("again")).unwrap();
    scratch.write("web.yaml", service("web"));
    let mut tree = Tree::new(std::slice::from_ref(&scratch.0));
    assert_eq!(tree.read(), []);
    assert_eq!(tree.objects().keys().collect::<Vec<_>>(), [&scratch.path("web.yaml")]);
}

#[test]
fn a_pipe_is_not_waited_for() {
    let scratch = Scratch::new();
    let pipe = scratch.path("pipe.yaml");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    scratch.write("web.yaml", service("web"));
    let mut tree = Tree::new(std::slice::from_ref(&scratch.0));
    assert_eq!(tree.read(), []);
    assert_eq!(tree.objects().len(), 1);
    let problems = read_problems(std::slice::from_ref(&pipe));
    assert_eq!(problems, [format!("{}: no regular file; give a file or a folder of files", pipe.display())]);
}

#[tokio::test]
async fn a_burst_that_does_not_end_is_cut() {
    let stirred = Arc::new(Notify::new());
    let stirring = Arc::clone(&stirred);
    let stirrer = tokio::spawn(async move {
        loop {
            stirring.notify_one();
            sleep(QUIET / 10).await;
        }
    });
    timeout(LONGEST_BURST * 10, burst(&stirred)).await.unwrap();
    stirrer.abort();
}

#[test]
fn ten_megabytes_are_read_and_more_is_refused() {
    let scratch = Scratch::new();
    let mut text = service("web");
    while text.len() < 10 * 1024 * 1024 - 200 {
        text += "# what the service is for, at length\n";
    }
    scratch.write("large.yaml", &text);
    let mut tree = Tree::new(std::slice::from_ref(&scratch.0));
    assert_eq!(tree.read(), []);
    assert_eq!(tree.objects().values().next().unwrap().services.len(), 1);
    scratch.write("large.yaml", text + &"#".repeat(1024));
    let problem = tree.read().remove(0).to_string();
    assert!(problem.ends_with("large.yaml: larger than 10 MiB; split it"), "{problem}");
}
