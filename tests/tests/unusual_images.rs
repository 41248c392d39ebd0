//! Content of any shape is content: artifacts, empty configs, unknown media types, odd names and broken manifests
//! are shared as they are, and none of them keeps the others from being shared.

use std::fs;
use std::time::Duration;

use spegel_tests::{Answer, Blob, Cluster, ClusterOptions, Generation, Image, ImageSpec, Node, wait_for};

const SHARED_MAX: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);

/// Named after what is odd about each.
fn unusual() -> Vec<ImageSpec> {
    let plain = |name: &str| ImageSpec::new(&format!("odd/{name}"), "1", &[1000]).single();
    let config = |name: &str, bytes: &[u8]| ImageSpec { config: Some(bytes.to_vec()), ..plain(name) };
    let manifest = |name: &str, bytes: &[u8]| ImageSpec { manifest: Some(bytes.to_vec()), ..plain(name) };
    vec![
        ImageSpec {
            config_type: "application/vnd.oci.empty.v1+json".to_owned(),
            ..config("empty-config", b"{}")
        },
        ImageSpec {
            config_type: "application/vnd.cncf.helm.config.v1+json".to_owned(),
            layer_type: "application/vnd.cncf.helm.chart.content.v1.tar+gzip".to_owned(),
            ..config("helm", br#"{"name":"chart","version":"1.0.0","apiVersion":"v2"}"#)
        },
        ImageSpec {
            layer_type: "application/spdx+json".to_owned(),
            ..config("sbom", br#"{"bomFormat":"CycloneDX"}"#)
        },
        ImageSpec { layer_type: "application/wasm".to_owned(), ..config("json-array", b"[1,2,3]") },
        config("json-number", b"42"),
        config("not-json", b"\x00\x01\x02 not JSON at all"),
        config("empty-file", b""),
        ImageSpec {
            manifest_type: "application/vnd.example.manifest.v9+json".to_owned(),
            ..plain("unknown-manifest")
        },
        ImageSpec {
            manifest_type: "application/vnd.docker.distribution.manifest.v2+json".to_owned(),
            index_type: "application/vnd.docker.distribution.manifest.list.v2+json".to_owned(),
            index: true,
            ..plain("docker")
        },
        ImageSpec { layers: Vec::new(), ..plain("no-layers") },
        manifest("truncated", br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.ma"#),
        manifest("wrong-types", br#"{"schemaVersion":"two","config":[],"layers":{"digest":7}}"#),
        manifest(
            "bad-digest",
            br#"{"schemaVersion":2,"config":{"digest":"sha256:zz"},"layers":[{"digest":"md5:1"}]}"#,
        ),
        plain("UPPER/Case"),
        plain("very-long-name-".repeat(16).trim_end_matches('-')),
    ]
}

/// Gets every blob once, taking what came off the list. Twice would be another story: a blob that was delivered
/// whole and then asked for again looks like one whose bytes were wrong, and its holder is avoided.
fn fetch(from: &Node, holder: &Node, wanted: &mut Vec<Blob>) -> Result<(), String> {
    while let Some(blob) = wanted.last() {
        // As a blob, whatever it is: a broken manifest can't be served as a manifest.
        let path = format!("/v2/odd/any/blobs/{}?ns=registry.test", blob.digest);
        let answer = from.get(&path, &[("Connection", "close")])?;
        let bytes = fs::read(&blob.path).map_err(|error| error.to_string())?;
        if answer.status != 200 || answer.body != bytes {
            let direct = from.get_as_peer(holder, &path).map_or(0, |answer| answer.status);
            let Answer { status, .. } = answer;
            return Err(format!(
                "{status} for {} ({} bytes), {direct} at the holder",
                blob.digest, blob.size
            ));
        }
        wanted.pop();
    }
    Ok(())
}

#[test]
fn unusual_images_that_come_while_the_mirror_runs_are_shared() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(2, Generation::V2_1));
    for spec in unusual() {
        let image = cluster.unpublished_image(&spec);
        cluster.expect(
            &format!("store {}", spec.repository),
            cluster.nodes[0].store(std::slice::from_ref(&image)),
        );
        let mut wanted = image.needed.clone();
        let look = || fetch(&cluster.nodes[1], &cluster.nodes[0], &mut wanted);
        let ((), took) = cluster.expect(&spec.repository, wait_for("shared", PATIENCE, look));
        assert!(took <= SHARED_MAX, "{} is shared after {took:?}, not {SHARED_MAX:?}", spec.repository);
    }
    assert_eq!(cluster.nodes[0].spegel_exited(), None, "the mirror still runs");
}

#[test]
fn unusual_images_that_are_there_at_the_start_stop_nothing() {
    for generation in Generation::ALL {
        let cluster = Cluster::new(ClusterOptions::new(2, generation));
        let [holder, other] = cluster.nodes.as_slice() else { panic!("two nodes") };
        let specs = unusual();
        let odd: Vec<Image> = specs.iter().map(|spec| cluster.unpublished_image(spec)).collect();
        cluster.expect("store", holder.store(&odd));
        let plain = cluster.unpublished_image(&ImageSpec::new("plain", "1", &[1000]));
        cluster.expect("import", holder.import(&plain));
        cluster.start_spegel();
        cluster.expect("an ordinary image is shared", other.wait_finds(&plain, PATIENCE));
        for (spec, image) in specs.iter().zip(&odd) {
            let mut wanted = image.needed.clone();
            let look = || fetch(other, holder, &mut wanted);
            cluster
                .expect(&format!("{generation:?}: {}", spec.repository), wait_for("shared", PATIENCE, look));
        }
        assert_eq!(holder.spegel_exited(), None, "{generation:?}: the mirror still runs");
    }
}
