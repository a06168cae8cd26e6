//! What the agent makes of API servers that fail in ways a real one cannot be asked to.

mod fakeapi;

use std::time::Instant;

use fakeapi::{
    Answer, FakeApi, NODES, SERVICE_CIDRS, SERVICES, SLICES, added, bookmark, end_of_list, event, expect, page,
    refusal, service, status,
};
use proxy_userspace::model::{Change, Event};
use proxy_userspace::watch::Nodes;
use serde_json::json;

#[tokio::test]
async fn a_streamed_list_ends_with_its_bookmark_and_goes_on_as_a_watch() {
    let api = FakeApi::start(|_| {
        let changed = event("MODIFIED", service("b", 5));
        let gone = event("DELETED", service("a", 6));
        Answer::Watch(vec![added("a", 1), added("b", 2), end_of_list(3), bookmark(4), changed, gone])
    })
    .await;
    let mut changes = api.follow().await;
    expect(&mut changes, &["begin", "apply a", "apply b", "end", "apply b", "delete shop/a"]).await;
    assert_eq!(api.requests(SERVICES).len(), 1);
}

#[tokio::test]
async fn what_is_asked_for_is_selected_on_the_server() {
    let api = FakeApi::start(|_| Answer::Watch(vec![end_of_list(3)])).await;
    let mut changes = api.follow().await;
    let mut complete = 0;
    while complete < 4 {
        if let Some(
            Change::Service(Event::End)
            | Change::EndpointSlice(Event::End)
            | Change::Node(Event::End)
            | Change::ServiceCidr(Event::Reset(_)),
        ) = changes.recv().await.map(|news| news.change)
        {
            complete += 1;
        }
    }
    let asked = |path, key| api.requests(path)[0].get(key).to_owned();
    assert_eq!(asked(SERVICES, "fieldSelector"), "spec.clusterIP!=None");
    assert_eq!(asked(SERVICES, "labelSelector"), "!service.kubernetes.io/service-proxy-name");
    assert_eq!(asked(SLICES, "labelSelector"), "!service.kubernetes.io/headless");
    assert_eq!(asked(NODES, "fieldSelector"), "metadata.name=node-1");
    assert_eq!(asked(SERVICES, "allowWatchBookmarks"), "true");
    let seconds: u32 = asked(SERVICES, "timeoutSeconds").parse().unwrap();
    assert!((300..=600).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn all_nodes_are_asked_for_in_two_parts_so_that_none_is_taken_for_this_one() {
    let api = FakeApi::start(|_| Answer::Watch(vec![end_of_list(3)])).await;
    let mut changes = api.follow_nodes(Nodes::All).await;
    let (mut own, mut others) = (false, false);
    while !(own && others) {
        match changes.recv().await.unwrap().change {
            Change::Node(Event::End) => own = true,
            Change::OtherNode(Event::End) => others = true,
            _ => {}
        }
    }
    let mut asked: Vec<_> = api.requests(NODES).iter().map(|request| request.get("fieldSelector").to_owned()).collect();
    asked.sort();
    assert_eq!(asked, ["metadata.name!=node-1", "metadata.name=node-1"]);
}

#[tokio::test]
async fn an_api_server_without_service_cidrs_has_none() {
    let api = FakeApi::start(|_| Answer::Watch(vec![end_of_list(3)])).await;
    let mut changes = api.follow().await;
    loop {
        if let Change::ServiceCidr(event) = changes.recv().await.unwrap().change {
            match event {
                Event::Begin => {}
                Event::Reset(list) => break assert!(list.is_empty()),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(api.requests(SERVICE_CIDRS).len(), 1);
}

#[tokio::test]
async fn without_streamed_lists_pages_are_read() {
    let api = FakeApi::start(|request| match (request.is_watch(), request.get("continue")) {
        (true, _) if request.wants_streamed_list() => refusal(422, "sendInitialEvents is forbidden"),
        (true, _) => Answer::Watch(vec![added("d", 8)]),
        (false, "") => page(&["a", "b"], 7, "second"),
        (false, "second") => page(&["c"], 7, ""),
        (false, other) => panic!("no page {other}"),
    })
    .await;
    let mut changes = api.follow().await;
    expect(&mut changes, &["begin", "apply a", "apply b", "apply c", "end", "apply d"]).await;
    let requests = api.requests(SERVICES);
    assert_eq!(requests[1].get("limit"), "500");
    assert_eq!(requests[3].get("resourceVersion"), "7");
}

#[tokio::test]
async fn a_list_that_breaks_off_is_never_taken_for_complete() {
    let api = FakeApi::start(|request| match (request.before, request.get("continue")) {
        (0, _) => Answer::Broken(vec![added("a", 1)]),
        (1, _) => refusal(422, "sendInitialEvents is forbidden"),
        (2, "") => page(&["a"], 7, "second"),
        (3, "second") => refusal(500, "etcd is away"),
        (4, "") => page(&["a", "b"], 9, ""),
        _ => Answer::Watch(Vec::new()),
    })
    .await;
    let mut changes = api.follow().await;
    expect(&mut changes, &["begin", "apply a", "begin", "apply a", "begin", "apply a", "apply b", "end"]).await;
}

#[tokio::test]
async fn a_broken_watch_is_resumed_where_it_was_without_a_list() {
    let api = FakeApi::start(|request| match request.before {
        0 => Answer::Broken(vec![end_of_list(3), added("a", 4)]),
        1 => refusal(500, "starting"),
        2 => Answer::Broken(vec![bookmark(6)]),
        _ => Answer::Watch(vec![added("b", 7)]),
    })
    .await;
    let mut changes = api.follow().await;
    expect(&mut changes, &["begin", "end", "apply a", "apply b"]).await;
    let versions: Vec<String> =
        api.requests(SERVICES).iter().map(|request| request.get("resourceVersion").to_owned()).collect();
    assert_eq!(versions, ["", "4", "4", "6"]);
}

#[tokio::test]
async fn when_the_server_has_forgotten_our_place_everything_is_listed_again() {
    let gone = || event("ERROR", status(410, "too old resource version"));
    let api = FakeApi::start(move |request| match request.before {
        0 => Answer::Watch(vec![added("a", 2), end_of_list(3), gone()]),
        _ => Answer::Watch(vec![added("b", 12), end_of_list(13)]),
    })
    .await;
    let mut changes = api.follow().await;
    expect(&mut changes, &["begin", "apply a", "end", "begin", "apply b", "end"]).await;
}

#[tokio::test]
async fn a_server_that_went_back_in_time_is_listed_again() {
    let api = FakeApi::start(|request| match request.before {
        0 => Answer::Watch(vec![added("a", 90), end_of_list(99), bookmark(12)]),
        _ => Answer::Watch(vec![end_of_list(13)]),
    })
    .await;
    let mut changes = api.follow().await;
    expect(&mut changes, &["begin", "apply a", "end", "begin", "end"]).await;
}

#[tokio::test]
async fn a_server_that_asks_for_time_gets_it() {
    let api = FakeApi::start(|request| match request.before {
        0 => {
            let mut busy = status(429, "too many requests");
            busy["details"] = json!({ "retryAfterSeconds": 2 });
            Answer::Json(429, busy)
        }
        _ => Answer::Watch(vec![end_of_list(13)]),
    })
    .await;
    let started = Instant::now();
    let mut changes = api.follow().await;
    expect(&mut changes, &["begin", "end"]).await;
    assert!(started.elapsed().as_secs() >= 2, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_field_of_the_wrong_type_costs_only_its_object() {
    let wrong = |version| {
        let mut wrong = service("wrong", version);
        wrong["spec"]["ports"] = json!("eighty");
        wrong
    };
    let api = FakeApi::start(move |_| {
        let first = event("ADDED", wrong(1));
        let again = event("MODIFIED", service("wrong", 4));
        let worse = event("MODIFIED", wrong(5));
        Answer::Watch(vec![first, added("good", 2), end_of_list(3), again, worse])
    })
    .await;
    let mut changes = api.follow().await;
    expect(&mut changes, &["begin", "apply good", "end", "apply wrong", "delete shop/wrong"]).await;
}
