//! The real binary, as somebody holds it wrong. Nothing here gets as far as needing rights.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder that goes when the test does.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("sluice-cli-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn sluice(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    // Tests may themselves run in a pod.
    command.env_remove("KUBERNETES_SERVICE_HOST").env_remove("KUBERNETES_SERVICE_PORT").env_remove("KUBECONFIG");
    command.args(words).output().unwrap()
}

/// Exit code and what was printed to standard error.
fn failed(words: &[&str]) -> (i32, String) {
    let output = sluice(words);
    (output.status.code().expect("it exits"), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_version_names_the_kernel_abi() {
    let output = sluice(&["--version"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(said.starts_with(concat!("sluice ", env!("CARGO_PKG_VERSION"), " (kernel ABI ")), "{said}");
}

#[test]
fn help_is_no_failure() {
    assert!(sluice(&["run", "--help"]).status.success());
}

#[test]
fn words_that_are_not_understood_end_with_code_2_before_anything_is_touched() {
    for (words, part) in [
        (&["run", "--no-such-flag"][..], "unexpected argument '--no-such-flag'"),
        (&["run", "stray"], "unexpected argument 'stray'"),
        (&["sprint"], "unrecognized subcommand 'sprint'"),
        (&["run", "--cluster-cidr=10.0.0.0/33"], "--cluster-cidr: 10.0.0.0/33 is not a CIDR: the prefix must be"),
        (&["run", "--cluster_cidr=10.0.0.0"], "--cluster-cidr: 10.0.0.0 is not a CIDR: it has no /PREFIX"),
    ] {
        let (code, said) = failed(words);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(part), "{words:?}: {said}");
    }
}

#[test]
fn a_manifest_that_cannot_be_read_is_named_with_line_and_way_out() {
    let scratch = Scratch::new();
    let no_address = scratch.file("a.yaml", "# shop\nkind: Service\nmetadata: {name: web}\n");
    let wrong_type = scratch.file(
        "b.yaml",
        "kind: Service\nmetadata: {name: web}\nspec:\n  clusterIP: 10.0.0.1\n  ports: [{port: http}]\n",
    );
    let missing = scratch.0.join("none").display().to_string();
    for (path, message) in [
        (
            &no_address,
            format!(
                "Error: {no_address}:2: Service default/web has no address: only an API server allocates clusterIP; write spec.clusterIP \
                 (None for a headless Service)\n"
            ),
        ),
        (&wrong_type, format!("Error: {wrong_type}:5: invalid i32, in `ports: [{{port: http}}]`\n")),
        (&missing, format!("Error: {missing}: cannot be read: No such file or directory (os error 2)\n")),
    ] {
        let (code, said) = failed(&["run", "--manifests", path]);
        assert_eq!((code, said), (1, message));
    }
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_named() {
    let scratch = Scratch::new();
    for (path, part) in [
        ("/nonexistent/kubeconfig".to_owned(), "No such file or directory"),
        (scratch.file("broken", "clusters: [\n"), "line 1 column 11"),
        (scratch.file("empty", "apiVersion: v1\nkind: Config\n"), "it names no cluster; a kubeconfig has"),
        (
            scratch.file(
                "dangling",
                "clusters: [{name: a, cluster: {server: 'https://192.0.2.1'}}]\ncurrent-context: gone\n",
            ),
            "gone",
        ),
    ] {
        let (code, said) = failed(&["run", "--kubeconfig", &path]);
        assert_eq!(code, 1, "{said}");
        assert!(said.starts_with(&format!("Error: --kubeconfig {path}")), "{said}");
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn outside_of_a_pod_the_flags_to_give_are_named() {
    let (code, said) = failed(&["run"]);
    assert_eq!(code, 1);
    assert!(said.contains("give --kubeconfig FILE, --master URL or --manifests PATH"), "{said}");
}

#[test]
fn a_cgroup_that_is_not_there_is_named() {
    let scratch = Scratch::new();
    let manifest = scratch.file("a.yaml", "kind: Node\nmetadata: {name: a}\n");
    let (code, said) = failed(&["run", "--manifests", &manifest, "--cgroup-root", "/nonexistent/cgroup"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("Error: ") && said.contains("/nonexistent/cgroup"), "{said}");
}
