//! Benchmarks run: everything once, no figure judged.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

/// What a smoke run reports.
fn quickly(mut bench: Command) -> Value {
    let program = Path::new(bench.get_program()).file_name().unwrap().to_owned();
    let json = env::temp_dir().join(program).with_extension(format!("{}.json", std::process::id()));
    let output = bench.arg("--quick").arg("--json").arg(&json).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    fs::remove_file(&json).unwrap();
    report
}

#[test]
fn the_benchmark_of_connections_has_samples_of_every_lane() {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench-connect"));
    bench.env_remove("SLUICE_KUBE_PROXY");
    let report = quickly(bench);
    let tables = report["tables"].as_array().unwrap();
    assert_eq!(tables.len(), 17, "eight quantities between pods, and within one namespace, and the time in programs");
    let rows = || tables.iter().flat_map(|table| table["rows"].as_array().unwrap());
    assert!(rows().all(|row| row["summary"]["samples"] == 3 && row["summary"]["p10"].as_f64() > Some(0.0)));
    assert_eq!(rows().count(), 8 * (14 + 3) + 10);
    let targets = report["targets"].as_array().unwrap();
    assert!(targets.iter().all(|target| target["value"].is_f64()), "a lane that a target asks for is missing");
}

#[test]
fn the_benchmark_of_packets_has_every_lane() {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench-packet"));
    bench.env_remove("SLUICE_KUBE_PROXY");
    let report = quickly(bench);
    let tables = report["tables"].as_array().unwrap();
    let rows: Vec<usize> = tables.iter().map(|table| table["rows"].as_array().unwrap().len()).collect();
    let sentence = "five quantities from outside, inside of the programs, and the programs in both families";
    assert_eq!(rows, [4, 4, 4, 4, 4, 5, 18, 18], "{sentence}");
    let targets = report["targets"].as_array().unwrap();
    assert!(targets.iter().all(|target| target["value"].is_f64()), "a lane that a target asks for is missing");
}

#[test]
fn the_benchmark_of_flows_that_are_over_has_every_look() {
    let report = quickly(Command::new(env!("CARGO_BIN_EXE_bench-collector")));
    let tables = report["tables"].as_array().unwrap();
    let rows = tables[0]["rows"].as_array().unwrap();
    assert_eq!((tables.len(), rows.len()), (1, 5));
    assert!(rows.iter().all(|row| row["summary"]["p50"].as_f64() > Some(0.0)), "{rows:?}");
}

#[test]
fn the_benchmark_of_changes_has_every_quantity() {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench-sync"));
    bench.env_remove("SLUICE_KUBE_PROXY").env_remove("SLUICE_KUBE_APISERVER");
    let report = quickly(bench);
    let tables = report["tables"].as_array().unwrap();
    assert_eq!(tables.len(), 19, "what every proxy has, what only Sluice tells, what takes long");
    let rows = |table: &Value| table["rows"].as_array().unwrap().len();
    assert!(tables.iter().all(|table| rows(table) == if is_in_turn(table) { 2 } else { 1 }));
}

/// A small cluster and a large one.
fn is_in_turn(table: &Value) -> bool {
    table["title"].as_str().unwrap().contains("in turn")
}
