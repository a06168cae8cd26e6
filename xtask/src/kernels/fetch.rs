//! Kernels of other releases: Debian's packages, fetched once, unpacked to what a guest needs and kept in the cache.
//!
//! A kernel that is in the cache is taken as it is; removing it fetches the newest one of its series. The packages come
//! from wherever this machine's apt gets Debian's, or from a folder that the environment names.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::places::Places;
use crate::{cache, step};

/// Names a folder with kernel packages (`linux-image-*.deb`), for machines whose apt cannot get them.
const VARIABLE: &str = "SLUICE_KERNEL_PACKAGES";

/// Drivers that a guest loads, with what they need: the host's files, and what the tests make.
const MODULES: [&str; 24] = [
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "veth",
    "bridge",
    "br_netfilter",
    "macvlan",
    "8021q",
    "bonding",
    "vxlan",
    "ifb",
    "tun",
    "sch_ingress",
    "cls_bpf",
    "xfrm_user",
    "tcp_diag",
    "udp_diag",
    "nf_tables",
    "nft_counter",
    "nft_objref",
    "nft_ct",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
];

/// A line of kernels, and the suite of Debian that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Series {
    pub(crate) name: &'static str,
    suite: &'static str,
}

impl Series {
    /// Its first two numbers.
    pub(crate) fn version(self) -> (u32, u32) {
        let numbers = numbers(self.name);
        (numbers[0], numbers.get(1).copied().unwrap_or(0))
    }
}

pub(crate) const SERIES: [Series; 5] = [
    Series { name: "5.10", suite: "bullseye" },
    Series { name: "6.1", suite: "bookworm" },
    Series { name: "6.12", suite: "trixie" },
    Series { name: "6.18", suite: "trixie-backports" },
    Series { name: "7", suite: "sid" },
];

/// A kernel that can be booted.
pub(crate) struct Kernel {
    pub(crate) series: Series,
    pub(crate) image: PathBuf,
    /// In the order in which they need each other.
    pub(crate) modules: Vec<PathBuf>,
}

/// The kernel of `series`, fetched unless one is there.
pub(crate) fn kernel(places: &Places, series: &Series) -> Result<Kernel> {
    let folder = match cached(&places.cache, series)? {
        Some(folder) => folder,
        None => fetched(places, series).with_context(|| {
            format!("get a kernel {} (or name a folder with its Debian package in {VARIABLE})", series.name)
        })?,
    };
    let mut modules = Vec::new();
    for entry in fs::read_dir(folder.join("modules"))? {
        modules.push(entry?.path());
    }
    modules.sort();
    Ok(Kernel { series: *series, image: folder.join("vmlinuz"), modules })
}

fn component(series: &Series, version: &str) -> String {
    cache::name(&format!("kernel-{}", series.name), version, &MODULES)
}

/// The newest one of the series that is finished.
fn cached(cache: &Path, series: &Series) -> Result<Option<PathBuf>> {
    let any = component(series, "*");
    let (before, after) = any.split_once('*').context("the name holds the version")?;
    let entries = fs::read_dir(cache).into_iter().flatten().collect::<Result<Vec<_>, _>>()?;
    let names = entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let ours = names.filter(|name| name.starts_with(before) && name.ends_with(after));
    Ok(ours.max_by_key(|name| numbers(name)).map(|name| cache.join(name)))
}

/// Once for everybody who waits for it.
fn fetched(places: &Places, series: &Series) -> Result<PathBuf> {
    let name = format!("fetch-{}", series.name);
    let _lock = cache::lock(&places.cache, &name)?;
    let scratch = cache::Scratch::new(&places.cache, &name)?;
    match cached(&places.cache, series)? {
        Some(folder) => Ok(folder),
        None => fetch(places, series, scratch.path()),
    }
}

fn fetch(places: &Places, series: &Series, scratch: &Path) -> Result<PathBuf> {
    let packages = match env::var_os(VARIABLE) {
        Some(folder) => PathBuf::from(folder),
        None => download(series, scratch)?,
    };
    let names = names(&packages)?;
    let release = newest(series, names.iter().map(String::as_str)).with_context(|| absent(series))?;
    let parts: Vec<_> = parts(release, &names).map(|name| packages.join(name)).collect();
    cache::get_or_build(&places.cache, &component(series, release), |folder| unpack(&parts, release, scratch, folder))
}

fn absent(series: &Series) -> String {
    format!("there is no package linux-image-{}…-amd64", series.name)
}

/// A folder with the packages of the newest kernel of the series that the suite has.
fn download(series: &Series, scratch: &Path) -> Result<PathBuf> {
    let apt = Apt::prepare(series, scratch)?;
    step::run(&format!("package lists of Debian {}", series.suite), &mut apt.command("apt-get", &["update"]))?;
    let known = step::run("look for kernels", &mut apt.command("apt-cache", &["pkgnames", "linux-"]))?.output;
    let known: Vec<_> = known.lines().map(str::to_owned).collect();
    let release = newest(series, known.iter().map(String::as_str)).with_context(|| absent(series))?;
    let mut download = apt.command("apt-get", &["download"]);
    let folder = scratch.join("packages");
    fs::create_dir(&folder)?;
    download.args(parts(release, &known)).current_dir(&folder);
    step::run(&format!("fetch kernel {release}"), &mut download)?;
    Ok(folder)
}

/// apt with one suite as its only source and lists of its own: nothing of the machine's set-up changes.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn prepare(series: &Series, scratch: &Path) -> Result<Self> {
        let sources = scratch.join("suite.sources");
        let text = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
            mirror()?,
            series.suite
        );
        fs::write(&sources, text).with_context(|| format!("write {}", sources.display()))?;
        fs::create_dir_all(scratch.join("lists/partial"))?;
        let settings = [
            ("Dir::Etc::SourceList", sources.as_path()),
            ("Dir::Etc::SourceParts", Path::new("/dev/null")),
            ("Dir::State::Lists", &scratch.join("lists")),
            ("Dir::Cache", scratch),
            ("Acquire::Languages", Path::new("none")),
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", Path::new("false")),
            // The files lie where only this user can go.
            ("APT::Sandbox::User", Path::new("")),
        ];
        let option = |(name, value): (&str, &Path)| ["-o".to_owned(), format!("{name}={}", value.display())];
        Ok(Self { options: settings.into_iter().flat_map(option).collect() })
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).args(arguments);
        command
    }
}

/// Where this machine's apt gets Debian itself from.
fn mirror() -> Result<String> {
    let mut ask = Command::new("apt-get");
    ask.args(["indextargets", "--format", "$(LABEL) $(ORIGIN) $(REPO_URI)", "Created-By: Packages"]);
    let answer = step::run("look where apt gets packages", &mut ask)?;
    let found = answer.output.lines().find_map(|line| line.strip_prefix("Debian Debian "));
    found.map(str::to_owned).context("apt knows no mirror of Debian (`apt-get indextargets` lists what it knows)")
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// The release of the newest ordinary kernel of the series: no cloud, real-time or unsigned flavour.
fn newest<'a>(series: &Series, packages: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let ours = |release: &&str| release.strip_prefix(series.name).is_some_and(|rest| rest.starts_with('.'));
    packages.filter_map(release).filter(ours).max_by_key(|release| numbers(release))
}

/// `6.12.107+deb13` of `linux-image-6.12.107+deb13-amd64`, with or without the rest of a file name.
fn release(package: &str) -> Option<&str> {
    let release = package.split('_').next()?.strip_prefix("linux-image-")?.strip_suffix("-amd64")?;
    release
        .starts_with(|c: char| c.is_ascii_digit())
        .then_some(release)
        .filter(|release| release.ends_with(|c: char| c.is_ascii_digit()))
}

/// The packages that this kernel comes in: one, in newer suites three.
fn parts<'a>(release: &str, packages: &'a [String]) -> impl Iterator<Item = &'a str> {
    let wanted = ["image", "binary", "modules"].map(|part| format!("linux-{part}-{release}-amd64"));
    let is_wanted =
        move |name: &&str| name.split('_').next().is_some_and(|name| wanted.iter().any(|part| part == name));
    packages.iter().map(String::as_str).filter(is_wanted)
}

fn numbers(text: &str) -> Vec<u32> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// Keeps the image and the drivers that guests load, in order and not compressed.
fn unpack(packages: &[PathBuf], version: &str, scratch: &Path, folder: &Path) -> Result<()> {
    let (release, root) = (format!("{version}-amd64"), scratch.join("root"));
    for package in packages {
        step::run(&format!("unpack kernel {version}"), Command::new("dpkg-deb").arg("-x").arg(package).arg(&root))?;
    }
    if !root.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", root.join("lib")).context("link lib")?;
    }
    step::run("index its drivers", Command::new("/sbin/depmod").arg("-b").arg(&root).arg(&release))?;
    let mut wanted = Command::new("/sbin/modprobe");
    wanted.arg("-d").arg(&root).args(["-S", &release, "--show-depends", "--all"]).args(MODULES);
    // A driver that this kernel lacks or has built in is an error to modprobe and none to us.
    let answer = wanted.output().with_context(|| format!("run {}", step::shown(&wanted)))?;
    let answer = String::from_utf8_lossy(&answer.stdout);
    fs::create_dir(folder.join("modules"))?;
    let mut seen = Vec::new();
    // Behind a file come the options that this machine has for it.
    let files = answer.lines().filter_map(|line| line.strip_prefix("insmod ")?.split_whitespace().next());
    for file in files.map(str::to_owned) {
        if !seen.contains(&file) {
            keep(Path::new(&file), seen.len(), folder)?;
            seen.push(file);
        }
    }
    ensure!(!seen.is_empty(), "it has no drivers:\n{answer}");
    let places = [format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")];
    let image = places.iter().map(|place| root.join(place)).find(|image| image.is_file());
    fs::copy(image.with_context(|| format!("it has no {}", places.join(", nor ")))?, folder.join("vmlinuz"))?;
    Ok(())
}

fn keep(module: &Path, number: usize, folder: &Path) -> Result<()> {
    let name = module.file_name().context("a file name")?.to_string_lossy().into_owned();
    let to = folder.join(format!("modules/{number:02}-{name}"));
    fs::copy(module, &to).with_context(|| format!("copy {}", module.display()))?;
    if module.extension().is_some_and(|kind| kind == "xz") {
        step::run(&format!("unpack {name}"), Command::new("xz").arg("-d").arg(&to))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_ordinary_kernel_of_a_series_is_taken() {
        let packages = [
            "linux-image-6.18.9+deb13-amd64",
            "linux-image-6.18.15+deb13-amd64",
            "linux-image-6.18.15+deb13-rt-amd64",
            "linux-image-6.18.16+deb13-cloud-amd64",
            "linux-image-6.18.16+deb13-amd64-unsigned",
            "linux-image-6.1.0-50-amd64",
            "linux-image-5.10.0-32-amd64_5.10.223-1_amd64.deb",
            "linux-image-amd64",
        ];
        let of = |name| newest(&Series { name, suite: "" }, packages.into_iter());
        assert_eq!(of("6.18"), Some("6.18.15+deb13"));
        assert_eq!(of("6.1"), Some("6.1.0-50"), "not 6.18");
        assert_eq!(of("5.10"), Some("5.10.0-32"));
        assert_eq!(of("7"), None);
    }

    #[test]
    fn a_kernel_in_three_packages_is_fetched_whole() {
        let known = ["image", "binary", "modules", "headers"].map(|part| format!("linux-{part}-7.2.12+deb13-amd64"));
        assert_eq!(parts("7.2.12+deb13", &known).collect::<Vec<_>>(), known[..3]);
    }
}
