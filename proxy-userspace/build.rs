//! Embeds the kernel programs that `cargo xtask build-ebpf` made.
//!
//! A release without them is an error that names the way out; a debug build (plain `cargo test`) gets an empty object and
//! says so when it is run. Without the feature `io` nothing would load them.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    if env::var_os("CARGO_FEATURE_IO").is_none() {
        return;
    }
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("sluice.bpf.o");
    let object =
        env::var_os("SLUICE_BPF_OBJECT").map_or_else(|| manifest.join("../target/bpf/sluice.bpf.o"), PathBuf::from);
    println!("cargo:rerun-if-env-changed=SLUICE_BPF_OBJECT");
    println!("cargo:rerun-if-changed={}", object.display());

    let release = env::var("PROFILE").as_deref() == Ok("release");
    match fs::read(&object) {
        Ok(bytes) => fs::write(&out, bytes).expect("OUT_DIR is writable"),
        Err(_) if !release => fs::write(&out, []).expect("OUT_DIR is writable"),
        Err(error) => {
            println!(
                "cargo::error=the kernel programs are missing ({}: {error}): run `cargo xtask build-ebpf` first",
                object.display()
            );
        }
    }
}
