//! A real control plane in a world: etcd, kube-apiserver and the controllers that make EndpointSlices.
//!
//! It runs at the other end of the uplink, so nodes reach it as they would any machine. Everything that it writes lies
//! in the world's own `/run`. Which programs to start is told by the environment; `cargo xtask test api` builds them.

use std::env;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, TypeMeta};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Client, Config};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::node::{Node, Place, Pod};
use crate::process::{end, pid_of};
use crate::world::World;

/// Where everything of the control plane lies, inside of the world's mounts.
const FOLDER: &str = "/run/control-plane";
/// The control plane's end of the uplink.
const SERVER: &str = "https://192.0.2.1:6443";
const ETCD: &str = "http://127.0.0.1:2379";
const TOKEN: &str = "test-token";
/// From nothing to an answer takes some seconds on an idle machine.
const START_PATIENCE: Duration = Duration::from_mins(2);

/// A running control plane; its processes end with it.
pub struct ControlPlane {
    place: Place,
    etcd: Child,
    apiserver: Child,
    controllers: Child,
    runtime: Runtime,
    client: Client,
}

impl ControlPlane {
    /// Starts all of it and waits until the API answers.
    pub fn start(world: &World) -> Result<Self> {
        fs::create_dir(FOLDER).with_context(|| format!("make {FOLDER}"))?;
        fs::write(in_folder("tokens"), format!("{TOKEN},tests,tests,system:masters\n"))?;
        let place = world.outside()?;
        let (etcd, apiserver) = (start_etcd(&place)?, start_apiserver(&place)?);
        wait_for(&in_folder("certificates/apiserver.crt"))?;
        let kubeconfig = kubeconfig_for(SERVER)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(client(&kubeconfig))?;
        let controllers = start_controllers(&place, &kubeconfig)?;
        let plane = Self { place, etcd, apiserver, controllers, runtime, client };
        plane.wait_until_ready()?;
        Ok(plane)
    }

    /// What an agent beside it is given.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        kubeconfig_for(SERVER)
    }

    /// Creates an object or makes it what `object` says, its status too.
    pub fn apply(&self, object: &Value) -> Result<()> {
        let (api, name) = self.api(object)?;
        let mut wanted = object.clone();
        // The status is a resource of its own, and not every list in it can be applied.
        let status = wanted.as_object_mut().and_then(|fields| fields.remove("status"));
        let parameters = PatchParams::apply("tests").force();
        self.call(async { api.patch(&name, &parameters, &Patch::Apply(&wanted)).await })?;
        status.map_or(Ok(()), |status| self.patch_status(object, &status))
    }

    pub fn patch_status(&self, object: &Value, status: &Value) -> Result<()> {
        let (api, name) = self.api(object)?;
        let patch = json!({ "status": status });
        self.call(async { api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await }).map(drop)
    }

    /// The object as the API server has it.
    pub fn get(&self, object: &Value) -> Result<Value> {
        let (api, name) = self.api(object)?;
        Ok(serde_json::to_value(self.call(async { api.get(&name).await })?)?)
    }

    /// Deletes at once: there is no kubelet to wait for.
    pub fn delete(&self, object: &Value) -> Result<()> {
        let (api, name) = self.api(object)?;
        self.call(async { api.delete(&name, &DeleteParams::default().grace_period(0)).await }).map(drop)
    }

    /// Ends the API server with `signal`. What it served stays in etcd.
    pub fn stop_apiserver(&mut self, signal: Signal) -> Result<()> {
        kill(pid_of(&self.apiserver), signal).context("signal kube-apiserver")?;
        self.apiserver.wait().map(drop).context("wait for kube-apiserver")
    }

    /// Starts it once more and waits until it answers.
    pub fn start_apiserver(&mut self) -> Result<()> {
        self.apiserver = start_apiserver(&self.place)?;
        self.wait_until_ready()
    }

    /// The `kubernetes` Service is the last thing that a new API server makes.
    fn wait_until_ready(&self) -> Result<()> {
        let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "kubernetes", "namespace": "default" } });
        let start = Instant::now();
        loop {
            match self.get(&service) {
                Ok(_) => return Ok(()),
                Err(error) if start.elapsed() > START_PATIENCE => {
                    bail!("the API server never got ready: {error:#}\n{}", log_end("kube-apiserver"))
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn api(&self, object: &Value) -> Result<(Api<DynamicObject>, String)> {
        let types: TypeMeta = serde_json::from_value(object.clone()).context("an object has apiVersion and kind")?;
        let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(types)?);
        let name = object["metadata"]["name"].as_str().context("an object has a name")?.to_owned();
        let api = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        Ok((api, name))
    }

    /// Asks from the control plane's own namespace: a socket belongs to the namespace of the thread that opens it.
    fn call<T: Send>(&self, request: impl Future<Output = kube::Result<T>> + Send) -> Result<T> {
        let (netns, runtime) = (self.place.netns.file()?, &self.runtime);
        let ask = move || -> Result<T> {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok(runtime.block_on(request)?)
        };
        thread::scope(|scope| scope.spawn(ask).join().expect("the thread does not panic"))
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for child in [&mut self.controllers, &mut self.apiserver, &mut self.etcd] {
            end(child);
        }
    }
}

/// A Node object for a node of the world.
pub fn node_object(node: &Node) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": node.name },
        "status": { "addresses": [
            { "type": "InternalIP", "address": node.v4 },
            { "type": "InternalIP", "address": node.v6 },
            { "type": "Hostname", "address": node.name },
        ]},
    })
}

/// A ready Pod object for a pod of the world, labelled `app`.
pub fn pod_object(pod: &Pod, app: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": pod.name, "namespace": "default", "labels": { "app": app } },
        "spec": {
            "nodeName": pod.node, "hostname": pod.name, "subdomain": app,
            "containers": [{ "name": "main", "image": "none", "ports": [{ "name": "main", "containerPort": port }] }],
        },
        "status": pod_status(pod, true),
    })
}

/// What a kubelet would report.
pub fn pod_status(pod: &Pod, ready: bool) -> Value {
    let ready = if ready { "True" } else { "False" };
    json!({
        "phase": "Running", "podIP": pod.v4, "podIPs": [{ "ip": pod.v4 }, { "ip": pod.v6 }],
        "conditions": [{ "type": "Ready", "status": ready }, { "type": "ContainersReady", "status": ready }],
    })
}

/// A kubeconfig for the API server at `server`, which must be a name on its certificate.
pub fn kubeconfig_for(server: &str) -> Result<PathBuf> {
    let path = in_folder(&format!("kubeconfig-{}", server.replace(['/', ':', '[', ']'], "-")));
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "tests",
        "contexts": [{ "name": "tests", "context": { "cluster": "tests", "user": "tests" } }],
        "clusters": [{ "name": "tests", "cluster": {
            "server": server, "certificate-authority": in_folder("certificates/apiserver.crt"),
        }}],
        "users": [{ "name": "tests", "user": { "token": TOKEN } }],
    });
    fs::write(&path, config.to_string()).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// The program that `variable` names.
pub fn program(variable: &str) -> Result<PathBuf> {
    let path = env::var_os(variable).with_context(|| format!("{variable} is not set: run `cargo xtask test api`"))?;
    Ok(path.into())
}

/// Starts a long-lived program whose output goes to a file of its name.
pub fn start_logged(place: &Place, program: &Path, arguments: &[String]) -> Result<Child> {
    let name = program.file_name().context("a program has a name")?.to_string_lossy();
    let path = in_folder(&format!("{name}.log"));
    let log =
        File::options().create(true).append(true).open(&path).with_context(|| format!("open {}", path.display()))?;
    let mut command = place.command(program)?;
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("start {}", program.display()))
}

/// The last lines of a program's log, for whoever reads why a test failed.
pub fn log_end(name: &str) -> String {
    let text = fs::read_to_string(in_folder(&format!("{name}.log"))).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

fn start_etcd(place: &Place) -> Result<Child> {
    let arguments = [
        format!("--data-dir={FOLDER}/etcd"),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        "--listen-peer-urls=http://127.0.0.1:0".to_owned(),
        "--unsafe-no-fsync".to_owned(),
        "--log-level=error".to_owned(),
    ];
    start_logged(place, &program("SLUICE_ETCD")?, &arguments)
}

/// The server makes its certificate on its first start; the key of that also signs service account tokens.
fn start_apiserver(place: &Place) -> Result<Child> {
    let key = in_folder("certificates/apiserver.key").display().to_string();
    let arguments = [
        format!("--etcd-servers={ETCD}"),
        format!("--cert-dir={FOLDER}/certificates"),
        format!("--token-auth-file={FOLDER}/tokens"),
        format!("--service-account-signing-key-file={key}"),
        format!("--service-account-key-file={key}"),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/12,fd00:96::/112".to_owned(),
        "--advertise-address=192.0.2.1".to_owned(),
        "--secure-port=6443".to_owned(),
        "--authorization-mode=RBAC".to_owned(),
        "--disable-admission-plugins=ServiceAccount".to_owned(),
    ];
    start_logged(place, &program("SLUICE_KUBE_APISERVER")?, &arguments)
}

fn start_controllers(place: &Place, kubeconfig: &Path) -> Result<Child> {
    let controllers = "endpoints-controller,endpointslice-controller,endpointslice-mirroring-controller";
    let arguments = [
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--controllers={controllers}"),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ];
    start_logged(place, &program("SLUICE_KUBE_CONTROLLER_MANAGER")?, &arguments)
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

fn in_folder(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

fn wait_for(path: &Path) -> Result<()> {
    let start = Instant::now();
    while !path.exists() {
        if start.elapsed() > START_PATIENCE {
            bail!("{} never appeared\n{}", path.display(), log_end("kube-apiserver"));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
