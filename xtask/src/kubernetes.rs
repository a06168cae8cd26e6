//! The Kubernetes programs of the API tests, built from their Go modules and kept in the cache.
//!
//! Each program is looked for in this order: the variable that names it outright, `KUBEBUILDER_ASSETS`, the cache.
//! What is missing is built one program at a time and at low priority, each in a small generated main module.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::places::Places;
use crate::{cache, step};

/// One program and the module it comes from.
struct Program {
    name: &'static str,
    /// Names a finished program; the tests are told by the same variable.
    variable: &'static str,
    module: &'static str,
    version: &'static str,
    package: &'static str,
    /// True for what envtest's folder holds.
    in_kubebuilder_assets: bool,
}

const KUBERNETES: &str = "k8s.io/kubernetes";
const KUBERNETES_VERSION: &str = "v1.36.3";
/// What Kubernetes keeps in its tree and publishes as modules of their own.
const STAGING_VERSION: &str = "v0.36.3";

const PROGRAMS: [Program; 5] = [
    Program {
        name: "etcd",
        variable: "SLUICE_ETCD",
        module: "go.etcd.io/etcd/server/v3",
        version: "v3.6.8",
        package: "go.etcd.io/etcd/server/v3",
        in_kubebuilder_assets: true,
    },
    Program {
        name: "kube-apiserver",
        variable: "SLUICE_KUBE_APISERVER",
        module: KUBERNETES,
        version: KUBERNETES_VERSION,
        package: "k8s.io/kubernetes/cmd/kube-apiserver",
        in_kubebuilder_assets: true,
    },
    Program {
        name: "kube-controller-manager",
        variable: "SLUICE_KUBE_CONTROLLER_MANAGER",
        module: KUBERNETES,
        version: KUBERNETES_VERSION,
        package: "k8s.io/kubernetes/cmd/kube-controller-manager",
        in_kubebuilder_assets: false,
    },
    Program {
        name: "kube-proxy",
        variable: "SLUICE_KUBE_PROXY",
        module: KUBERNETES,
        version: KUBERNETES_VERSION,
        package: "k8s.io/kubernetes/cmd/kube-proxy",
        in_kubebuilder_assets: false,
    },
    Program {
        name: "coredns",
        variable: "SLUICE_COREDNS",
        module: "github.com/coredns/coredns",
        version: "v1.15.0",
        package: "github.com/coredns/coredns",
        in_kubebuilder_assets: false,
    },
];

/// Builds what is missing; the answer tells the tests where each program is.
pub(crate) fn programs(places: &Places) -> Result<Vec<(&'static str, PathBuf)>> {
    PROGRAMS.iter().map(|program| Ok((program.variable, program.get_or_build(places)?))).collect()
}

/// Builds one of them if it is missing; the answer as in [`programs`].
pub(crate) fn program(places: &Places, name: &str) -> Result<(&'static str, PathBuf)> {
    let program = PROGRAMS.iter().find(|program| program.name == name);
    let program = program.with_context(|| format!("{name} is none of the Kubernetes programs"))?;
    Ok((program.variable, program.get_or_build(places)?))
}

/// True when nothing would have to be built.
pub(crate) fn all_ready(places: &Places) -> bool {
    PROGRAMS.iter().all(|program| program.named().is_some() || program.cached(places).is_some())
}

/// What the Go toolchain says about itself, if there is one.
pub(crate) fn go_version() -> Option<String> {
    let answer = Command::new("go").arg("version").output().ok()?;
    answer.status.success().then(|| String::from_utf8_lossy(&answer.stdout).trim().to_owned())
}

impl Program {
    fn get_or_build(&self, places: &Places) -> Result<PathBuf> {
        if let Some(named) = self.named() {
            ensure!(named.is_file(), "{}: there is no {}", named.display(), self.name);
            return Ok(named);
        }
        let folder = cache::get_or_build(&places.cache, &self.component(), |folder| self.build(places, folder))?;
        Ok(folder.join(self.name))
    }

    fn named(&self) -> Option<PathBuf> {
        let explicit = env::var_os(self.variable).map(PathBuf::from);
        explicit.or_else(|| {
            let assets = env::var_os("KUBEBUILDER_ASSETS").filter(|_| self.in_kubebuilder_assets)?;
            Some(Path::new(&assets).join(self.name)).filter(|file| file.is_file())
        })
    }

    fn cached(&self, places: &Places) -> Option<PathBuf> {
        cache::finished(&places.cache, &self.component())
    }

    fn component(&self) -> String {
        cache::name(self.name, self.version, &self.flags().iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Everything about the build that shapes the program.
    fn flags(&self) -> Vec<String> {
        let version = if self.module == KUBERNETES {
            format!(" -X k8s.io/component-base/version.gitVersion={}", self.version)
        } else {
            String::new()
        };
        ["-mod=mod", "-trimpath", "-ldflags"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("-s -w{version}")])
            .collect()
    }

    /// One Go build at a time on a machine: two would only get in each other's way.
    fn build(&self, places: &Places, folder: &Path) -> Result<()> {
        let _turn = cache::lock(&places.cache, "go-build")?;
        let module = folder.join("module");
        fs::create_dir(&module).with_context(|| format!("make {}", module.display()))?;
        fs::write(module.join("go.mod"), self.go_mod(&module)?)?;
        let mut build = Command::new("nice");
        build
            .args(["-n", "19", "go", "build"])
            .args(self.flags())
            .arg("-o")
            .arg(folder.join(self.name))
            .arg(self.package);
        build.current_dir(&module).env("CGO_ENABLED", "0").env_remove("GOFLAGS");
        step::run(&format!("build {} {}", self.name, self.version), &mut build)?;
        fs::remove_dir_all(&module).with_context(|| format!("remove {}", module.display()))
    }

    fn go_mod(&self, module: &Path) -> Result<String> {
        let mut text =
            format!("module sluice.test/{}\n\ngo 1.26.0\n\nrequire {} {}\n", self.name, self.module, self.version);
        if self.module == KUBERNETES {
            text.push_str("\ngodebug default=go1.26\n");
            text.push_str(&replacements(&kubernetes_go_mod(module)?));
        }
        Ok(text)
    }
}

/// Kubernetes' own go.mod, as published.
fn kubernetes_go_mod(folder: &Path) -> Result<String> {
    let wanted = format!("{KUBERNETES}@{KUBERNETES_VERSION}");
    let mut download = Command::new("go");
    download.args(["mod", "download", "-json", &wanted]).current_dir(folder);
    let outcome = step::run(&format!("fetch {wanted}"), &mut download)?;
    // Go's notes on what it downloads come before the answer.
    let answer = outcome.output.find('{').map_or("", |start| &outcome.output[start..]);
    let described: serde_json::Value = serde_json::from_str(answer).context("read what go mod download says")?;
    let path = described["GoMod"].as_str().context("go mod download names no go.mod")?;
    fs::read_to_string(path).with_context(|| format!("read {path}"))
}

/// Published modules in place of the folders that only Kubernetes' own tree has.
fn replacements(go_mod: &str) -> String {
    let staged = go_mod.lines().filter_map(|line| line.trim().split_once(" => ./staging/")).map(|(module, _)| module);
    staged.fold(String::new(), |mut text, module| {
        let _ = writeln!(text, "replace {module} => {module} {STAGING_VERSION}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_folders_become_published_modules_and_nothing_else_does() {
        let go_mod = "require (\n\tk8s.io/api v0.0.0\n)\nreplace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\tother => ../other\n)\n";
        assert_eq!(replacements(go_mod), "replace k8s.io/api => k8s.io/api v0.36.3\n");
    }

    #[test]
    fn kubernetes_programs_carry_their_version() {
        let flags =
            PROGRAMS.iter().filter(|program| program.module == KUBERNETES).map(|program| program.flags().join(" "));
        assert!(flags.into_iter().all(|flags| flags.contains("gitVersion=v1.36.3")));
    }
}
