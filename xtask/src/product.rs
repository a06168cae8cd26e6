//! The binary `sluice` as users get it: the release build with the kernel programs inside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::LittleEndian;
use object::elf::{FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};

use crate::places::Places;
use crate::{build_ebpf, step};

/// Builds kernel programs and agent; the answer is the finished binary.
pub(crate) fn release(places: &Places) -> Result<PathBuf> {
    build_ebpf::run(places, build_ebpf::Flavour::Release)?;
    let mut cargo = places.cargo();
    cargo.args(["build", "--release", "--package", "proxy-userspace", "--message-format", "json-render-diagnostics"]);
    let outcome = step::run("build the agent (release)", &mut cargo)?;
    executables(&outcome.output)
        .into_iter()
        .find(|built| built.name == "sluice")
        .map(|built| built.path)
        .context("cargo names no binary `sluice`")
}

/// Builds the programs of the tests crate, helpers included; the answer is the one called `name`.
pub(crate) fn test_program(places: &Places, name: &str) -> Result<PathBuf> {
    let mut cargo = places.cargo();
    cargo.args(["build", "--package", "proxy-tests", "--bins", "--message-format", "json-render-diagnostics"]);
    let outcome = step::run(&format!("build {name}"), &mut cargo)?;
    let found = executables(&outcome.output).into_iter().find(|built| built.name == name);
    Ok(found.with_context(|| format!("cargo names no program `{name}`"))?.path)
}

/// Builds one program of the tests crate as users get the agent, for what runs inside of it, and its helper.
pub(crate) fn released_test_program(places: &Places, name: &str) -> Result<PathBuf> {
    let mut cargo = places.cargo();
    cargo.args(["build", "--release", "--package", "proxy-tests", "--bin", "probe", "--bin", name]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    let outcome = step::run(&format!("build {name} (release)"), &mut cargo)?;
    let found = executables(&outcome.output).into_iter().find(|built| built.name == name);
    Ok(found.with_context(|| format!("cargo names no program `{name}`"))?.path)
}

/// Builds proxy-tests; the answer is its test programs, library tests first.
pub(crate) fn root_tests(places: &Places) -> Result<Vec<Executable>> {
    let mut cargo = places.cargo();
    cargo.args(["test", "--package", "proxy-tests", "--no-run", "--message-format", "json-render-diagnostics"]);
    let outcome = step::run("build the tests", &mut cargo)?;
    let mut tests = executables(&outcome.output);
    tests.retain(|built| built.kind == "test" || built.kind == "lib");
    tests.sort_by(|a, b| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
    Ok(tests)
}

/// One program that cargo says it built.
pub(crate) struct Executable {
    pub(crate) name: String,
    /// `bin`, `lib`, `test`.
    pub(crate) kind: String,
    pub(crate) path: PathBuf,
}

/// Reads cargo's JSON messages.
pub(crate) fn executables(messages: &str) -> Vec<Executable> {
    let artifacts = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    artifacts
        .filter_map(|message| {
            Some(Executable {
                name: message["target"]["name"].as_str()?.to_owned(),
                kind: message["target"]["kind"][0].as_str()?.to_owned(),
                path: message["executable"].as_str()?.into(),
            })
        })
        .collect()
}

/// One file that needs nothing around it: no interpreter in the ELF, and it runs as the only file of its root.
pub(crate) fn check_static(binary: &Path) -> Result<String> {
    let bytes = fs::read(binary).with_context(|| format!("read {}", binary.display()))?;
    if has_interpreter(&bytes).with_context(|| binary.display().to_string())? {
        bail!("{} asks for a dynamic loader: is `+crt-static` lost (RUSTFLAGS, .cargo/config.toml)?", binary.display());
    }
    let mut size = format!("{} bytes, static", bytes.len());
    if nix::unistd::geteuid().is_root() {
        run_alone(binary)?;
        size.push_str(", runs in an empty chroot");
    }
    Ok(size)
}

fn has_interpreter(bytes: &[u8]) -> Result<bool> {
    let header = FileHeader64::<LittleEndian>::parse(bytes)?;
    let segments = header.program_headers(LittleEndian, bytes)?;
    Ok(segments.iter().any(|segment| segment.p_type(LittleEndian) == PT_INTERP))
}

fn run_alone(binary: &Path) -> Result<()> {
    let root = std::env::temp_dir().join(format!("sluice-chroot-{}", std::process::id()));
    fs::create_dir(&root).with_context(|| format!("make {}", root.display()))?;
    let ran = fs::copy(binary, root.join("sluice")).map_err(Into::into).and_then(|_| {
        step::run("run the agent in an empty chroot", Command::new("chroot").arg(&root).args(["/sluice", "--version"]))
    });
    fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    ran.map(drop)
}
