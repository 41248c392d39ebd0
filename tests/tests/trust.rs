//! Who shows neither the cluster secret nor credentials gets nothing: a node without them cannot join and a client
//! is not answered, while the others do not notice. containerd shows what `spegel configuration` wrote for it.
#![allow(clippy::disallowed_methods, reason = "real parts run on the real clock; nothing here is simulated")]
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use spegel_tests::{
    Cluster, ClusterOptions, Generation, Image, ImageSpec, Node, OTHER_SECRET, Puller, SECRET, mib,
};

const LAYERS: [u64; 3] = [mib(2), 100_000, 1000];
const PATIENCE: Duration = Duration::from_secs(20);
const PULL_MAX: Duration = Duration::from_secs(3);
/// Several rounds of whatever a node repeats that is not let in.
const WATCH: Duration = Duration::from_secs(10);
const CPU_SHARE_MAX: f64 = 0.03;
/// A reason to refuse is mentioned once a minute.
const MENTIONS_MAX: usize = 2;
/// Requests of [`nothing_is_told`] to one node, as a client and as a node each.
const ASKED_EACH_WAY: f64 = 8.0;
const KNOCKS_PAUSE: Duration = Duration::from_millis(10);

/// An image that only these nodes have: the registry does not.
fn private_image(cluster: &Cluster, tag: &str, holders: &[&Node], finder: &Node) -> Image {
    let image = cluster.unpublished_image(&ImageSpec::new("trust", tag, &LAYERS).single());
    for holder in holders {
        cluster.expect("import", holder.import(&image));
    }
    cluster.expect("shared", finder.wait_finds(&image, PATIENCE));
    image
}

/// Whatever a client without the secret says, no node tells it anything.
fn nothing_is_told(
    cluster: &Cluster,
    asking: &Node,
    asked: &[&Node],
    image: &Image,
    guesses: &[(&str, &str)],
) {
    let layer = image.blob_path(&image.layers[0]);
    let paths = [image.tag_path(), layer.clone(), format!("{layer}&x=y"), "/v2/".to_owned()];
    let mut refused = 0;
    for node in asked {
        for (path, method) in paths.iter().flat_map(|path| [(path, "GET"), (path, "HEAD")]) {
            for as_node in [false, true] {
                let mut headers = guesses.to_vec();
                headers.extend(as_node.then_some(("X-Spegel-Mirrored", "true")));
                let mut client = cluster.expect("connect", asking.connect(node.mirror_address()));
                let answer = cluster.expect("an answer", client.request(method, path, &headers));
                assert_eq!(answer.status, 401, "{method} {path} at {} with {headers:?}", node.name);
                assert!(method == "HEAD" || answer.text().contains("UNAUTHORIZED"), "{}", answer.text());
                assert!(answer.body.len() < 300, "{}", answer.text());
                refused += 1;
            }
        }
    }
    println!("{}: {refused} requests to {} nodes told nothing", asking.name, asked.len());
}

fn lines_with(node: &Node, text: &str) -> usize {
    node.spegel_log().lines().filter(|line| line.contains(text) && line.contains("WARN")).count()
}

#[test]
fn node_without_the_secret_gets_nothing_and_disturbs_nobody() {
    let cluster = Cluster::new(ClusterOptions::new(4, Generation::V2_1));
    let [first, second, puller, rogue] = cluster.nodes.as_slice() else { panic!("four nodes") };
    let honest = [first, second, puller];
    honest.iter().for_each(|node| node.put_cluster_secret(&[SECRET]));
    cluster.start_spegel();
    for node in honest {
        cluster.expect("those with the secret find each other", node.wait_members(3, PATIENCE));
    }
    let [calm_image, image] = ["calm", "1"].map(|tag| private_image(&cluster, tag, &[first, second], puller));
    let calm = cluster.expect("pull", puller.pull(Puller::Cri, &calm_image.by_tag()));

    let error =
        rogue.pull(Puller::Cri, &image.by_tag()).expect_err("no holder tells the rogue node anything");
    println!("the rogue node: {error}");
    let members = cluster.expect("metrics", rogue.metric("spegel_members", ""));
    assert!((members - 1.0).abs() < 0.5, "the rogue node is alone, not one of {members}");
    let signature = format!("v1 2000000000 {}", "0".repeat(64));
    for guesses in
        [&[][..], &[("Authorization", "Basic c3BlZ2VsOmd1ZXNz"), ("X-Spegel-Signature", &signature)]]
    {
        nothing_is_told(&cluster, rogue, &honest, &image, guesses);
    }

    // While it goes on knocking.
    let (done, knocks) = (AtomicBool::new(false), AtomicU32::new(0));
    let took = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for node in honest {
                    let knocked = rogue.connect(node.mirror_address());
                    let _refused = knocked.and_then(|mut client| client.get(&image.tag_path(), &[]));
                    knocks.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(KNOCKS_PAUSE);
            }
        });
        let took = puller.pull(Puller::Cri, &image.by_tag());
        thread::sleep(Duration::from_secs(1));
        done.store(true, Ordering::Relaxed);
        cluster.expect("pull", took)
    });
    cluster.expect("content", puller.verify(&image));
    println!("pull {took:?} amid {} knocks, {calm:?} before", knocks.load(Ordering::Relaxed));
    assert!(took <= PULL_MAX, "the pull takes {took:?}");
    let cpu = honest.map(Node::spegel_cpu_seconds);
    thread::sleep(WATCH);
    for (node, before) in honest.iter().zip(cpu) {
        let share = (node.spegel_cpu_seconds() - before) / WATCH.as_secs_f64();
        println!("{}: {:.2} % of a processor", node.name, share * 100.0);
        assert!(share <= CPU_SHARE_MAX, "{}: {:.1} % of a processor, not 3 %", node.name, share * 100.0);
        cluster.expect("nobody has joined or left", node.wait_members(3, Duration::from_secs(1)));
    }
    told_to_the_operator(&cluster, &honest);

    // With a secret of its own it is no better off, and told what may be wrong.
    cluster.expect("stop", rogue.stop_spegel(PATIENCE));
    rogue.put_cluster_secret(&[OTHER_SECRET]);
    cluster.spawn_spegel(rogue);
    cluster.expect("ready all the same", rogue.wait_ready(PATIENCE));
    rogue.pull(Puller::Cri, &image.by_tag()).expect_err("no holder tells the rogue node anything");
    let authorization = rogue.authorization().expect("containerd has credentials made of the secret");
    nothing_is_told(&cluster, rogue, &honest, &image, &[("Authorization", &authorization)]);
    let told = lines_with(rogue, "does it have the same cluster secret as this one?");
    assert!((1..=MENTIONS_MAX).contains(&told), "the rogue node says {told} times what may be wrong");
    for node in honest {
        cluster.expect("nobody has joined or left", node.wait_members(3, Duration::from_secs(1)));
    }
}

fn told_to_the_operator(cluster: &Cluster, honest: &[&Node]) {
    let mut knocked_at = 0;
    for node in honest {
        for (reason, told) in [
            ("credentials", "invalid credentials"),
            ("unsigned", "is not signed"),
            ("wrong_signature", "is wrong: it was made with another cluster secret"),
        ] {
            let count = node.metric("spegel_strangers_refused_total", &format!("reason=\"{reason}\""));
            let count = cluster.expect("metrics", count);
            let lines = lines_with(node, told);
            println!("{}: {count} refused for {reason}, mentioned {lines} times", node.name);
            assert!(count >= ASKED_EACH_WAY, "{}: {count} refused for {reason}", node.name);
            assert!(
                (1..=MENTIONS_MAX).contains(&lines),
                "{}: {reason} is mentioned {lines} times",
                node.name
            );
        }
        let count =
            cluster.expect("metrics", node.metric("spegel_strangers_refused_total", "reason=\"router\""));
        knocked_at += usize::from(count > 0.0);
        println!("{}: {count} connections refused", node.name);
        assert!(lines_with(node, "was not made with the cluster secret") <= MENTIONS_MAX);
    }
    assert!(knocked_at > 0, "the rogue node never dialled anybody, so this shows nothing");
}

/// With a secret, mirrors do not give each other the credentials: containerd alone does.
fn credentials_are_asked_for(generation: Generation, secret: Option<&str>) {
    let cluster = Cluster::new(ClusterOptions::new(3, generation));
    let [holder, puller, stranger] = cluster.nodes.as_slice() else { panic!("three nodes") };
    for node in [holder, puller] {
        node.put_basic_auth("mirror", "pass:word");
        secret.iter().for_each(|secret| node.put_cluster_secret(&[secret]));
    }
    cluster.start_spegel();
    let members = if secret.is_some() { 2 } else { 3 };
    cluster.expect("the cluster forms", puller.wait_members(members, PATIENCE));
    assert_eq!(
        puller.authorization().as_deref(),
        Some("Basic bWlycm9yOnBhc3M6d29yZA=="),
        "as the Go implementation"
    );
    for by in Puller::ALL {
        let image = private_image(&cluster, &format!("{by:?}").to_lowercase(), &[holder], puller);
        cluster.expect("pull", puller.pull(by, &image.by_tag()));
        cluster.expect("content", puller.verify(&image));
        stranger.pull(by, &image.by_tag()).expect_err("the holder does not answer without credentials");
        for guess in ["Basic bWlycm9yOmd1ZXNz", "Bearer bWlycm9yOnBhc3M6d29yZA==", "Basic ***"] {
            nothing_is_told(&cluster, stranger, &[holder], &image, &[("Authorization", guess)]);
        }
        nothing_is_told(&cluster, stranger, &[holder], &image, &[]);
    }
    // Credentials that the mirror does not take any more cost containerd no pull.
    puller.put_basic_auth("mirror", "another");
    cluster.expect("spegel configuration", puller.write_mirror_configuration());
    let image = cluster.image(&ImageSpec::new("trust", "public", &LAYERS).single());
    let pulled = puller.pull(Puller::Cri, &image.by_tag());
    cluster.expect("pull from the registry", pulled);
    let refused = puller.metric("spegel_strangers_refused_total", "reason=\"credentials\"");
    assert!(cluster.expect("metrics", refused) > 0.5, "the mirror was asked with the wrong password");
}

#[test]
fn containerd_1_6_shows_its_credentials() {
    credentials_are_asked_for(Generation::V1_6, None);
}

#[test]
fn containerd_2_1_shows_its_credentials() {
    credentials_are_asked_for(Generation::V2_1, None);
}

#[test]
fn containerd_shows_its_credentials_where_nodes_have_a_secret() {
    credentials_are_asked_for(Generation::V2_1, Some(SECRET));
}
