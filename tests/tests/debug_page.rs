//! The debug page in a browser: on a desktop and on a phone it shows what the node knows, with a keyboard alone and
//! without scripts, and nobody else's machine sees it.
#![allow(clippy::disallowed_methods, reason = "real parts run on the real clock; nothing here is simulated")]
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use spegel_tests::{
    Browser, Cluster, ClusterOptions, Generation, Image, ImageSpec, METRICS_PORT, Node, Puller, SECRET,
    Screen, mib, target_dir, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(20);
const LAYERS: [u64; 3] = [mib(20), 100_000, 1000];
/// An image whose manifest cannot be read.
const UNREADABLE: &str = "registry.test/unreadable:1";
const HEADINGS: [&str; 7] = [
    "This node",
    "Check",
    "Quarantine",
    "Cluster",
    "Recent pulls",
    "Who has this image or digest?",
    "Measure a pull",
];
/// WCAG 2.2, success criteria 1.4.3 (contrast of text) and 2.5.8 (size of targets, in CSS pixels).
const CONTRAST_MIN: f64 = 4.5;
const TARGET_MIN: f64 = 24.0;

/// The least contrast of a text with what is behind it, and whose; the page has one background.
const LEAST_CONTRAST: &str = r"(() => {
    const parse = color => color.match(/[\d.]+/g).slice(0, 3).map(Number);
    const light = color => {
        const [r, g, b] = parse(color).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const page = light(getComputedStyle(document.body).backgroundColor);
    let least = [99, ''];
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!own || element.closest('button')) continue;
        const text = light(getComputedStyle(element).color);
        const ratio = (Math.max(page, text) + 0.05) / (Math.min(page, text) + 0.05);
        if (ratio < least[0]) least = [ratio, element.outerHTML.slice(0, 80)];
    }
    return least;
})()";

/// Where screenshots are kept to be looked at.
fn pictures() -> PathBuf {
    let dir = target_dir().join("debug-page");
    fs::create_dir_all(&dir).expect("the target directory is ours");
    dir
}

fn text(cluster: &Cluster, browser: &mut Browser, expression: &str) -> String {
    let value = cluster.expect("the page", browser.evaluate(expression));
    // Numbers and their units are held together by a space of another kind.
    value.as_str().map_or_else(|| value.to_string(), |text| text.replace('\u{a0}', " "))
}

fn section(cluster: &Cluster, browser: &mut Browser, id: &str) -> String {
    text(cluster, browser, &format!("document.getElementById('{id}').closest('section').innerText"))
}

fn looks_right(cluster: &Cluster, browser: &mut Browser, url: &str, screen: Screen, is_dark: bool) {
    cluster.expect("dark or light", browser.prefer_dark(is_dark));
    cluster.expect("the page loads", browser.open(url, screen));
    let name = format!("{screen:?}-{}", if is_dark { "dark" } else { "light" }).to_lowercase();
    cluster.expect("a picture", browser.screenshot(&pictures().join(format!("{name}.png"))));
    let mut seen = |expression: &str| text(cluster, browser, expression);
    let headings = "[...document.querySelectorAll('h2')].map(heading => heading.innerText).join('|')";
    assert_eq!(seen(headings), HEADINGS.join("|"), "{name}");
    assert_eq!(seen("document.querySelectorAll('h1').length"), "1", "{name}: one title");
    assert_eq!(seen("document.documentElement.lang"), "en", "{name}");
    let too_wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
    assert_eq!(seen(too_wide), "0", "{name}: pixels to scroll sideways");
    let unlabelled = "[...document.querySelectorAll('input')].filter(input => !input.labels.length).length";
    assert_eq!(seen(unlabelled), "0", "{name}: inputs without a label");
    let small = format!(
        "[...document.querySelectorAll('a, button, input')].filter(target => target.checkVisibility() && \
         !target.labels?.length && target.getBoundingClientRect().height < {TARGET_MIN}).map(target => \
         target.outerHTML).join()"
    );
    assert_eq!(seen(&small), "", "{name}: targets that are too small for a finger");
    let least = cluster.expect("contrast", browser.evaluate(LEAST_CONTRAST));
    let (ratio, whose) = (least[0].as_f64().unwrap_or(0.0), least[1].to_string());
    println!("{name}: least contrast {ratio:.1} of {whose}");
    assert!((CONTRAST_MIN..99.0).contains(&ratio), "{name}: contrast {ratio} of {whose}");
}

/// Walks by `Tab` to the input of this name, types into it and presses Enter.
fn ask(cluster: &Cluster, browser: &mut Browser, name: &str, what: &str) {
    for _ in 0..40 {
        cluster.expect("Tab", browser.press("Tab"));
        let focused = text(cluster, browser, "document.activeElement.name || ''");
        let outline = text(cluster, browser, "getComputedStyle(document.activeElement).outlineStyle");
        assert_ne!(outline, "none", "what has the focus is seen");
        if focused == name {
            cluster.expect("type", browser.press(what));
            // The next page does not have it.
            cluster.expect("mark", browser.evaluate("window.isAsked = true"));
            cluster.expect("Enter", browser.press("Enter"));
            let answered = format!(
                "!window.isAsked && document.querySelector('[name={name}]')?.closest('section')\
                 .querySelector('[role=status]') != null"
            );
            return cluster.expect("an answer", browser.wait_for(&answered));
        }
    }
    panic!("no input {name} can be reached by keyboard");
}

fn has_all(what: &str, seen: &str, parts: &[&str]) {
    for part in parts {
        assert!(seen.contains(part), "{what} does not say {part:?}:\n{seen}");
    }
}

fn page_of_a_real_node(cluster: &Cluster, node: &Node, holder: &Node, image: &Image) {
    let local = format!("http://localhost:{METRICS_PORT}/debug/web/");
    let mut browser = cluster.expect("chromium", Browser::start(node.netns(), cluster.dir()));
    // It refreshes itself.
    cluster.expect("the page loads", browser.open(&local, Screen::Desktop));
    cluster.expect(
        "the first check",
        browser.wait_for("!document.body.innerText.includes('has not been checked')"),
    );
    for (screen, is_dark) in
        [(Screen::Desktop, true), (Screen::Phone, true), (Screen::Phone, false), (Screen::Desktop, false)]
    {
        looks_right(cluster, &mut browser, &local, screen, is_dark);
    }
    let holder_addr = holder.address().to_string();
    has_all("This node", &section(cluster, &mut browser, "node"), &["2.1.", "registry.test", "yes"]);
    has_all(
        "Cluster",
        &section(cluster, &mut browser, "cluster"),
        &["2 members are alive", &holder_addr, "alive", "closed"],
    );
    let quarantined = section(cluster, &mut browser, "quarantine");
    has_all("Quarantine", &quarantined, &[UNREADABLE, "manifest not json", "when it changes"]);
    let layer = image.layers[0].digest.as_str();
    let pulls = section(cluster, &mut browser, "pulls");
    has_all(
        "Recent pulls",
        &pulls,
        &[layer, &format!("{holder_addr}:5000"), "20.0 MiB", "complete", "(blob)"],
    );
    has_all("Check", &section(cluster, &mut browser, "check"), &["containerd", "hosts_toml"]);

    ask(cluster, &mut browser, "q", &image.by_tag());
    let found = section(cluster, &mut browser, "search");
    has_all("Search", &found, &[&image.by_tag(), "this node has it, and so do others", &holder_addr]);
    ask(cluster, &mut browser, "q", "registry.test/nobody/has:this");
    has_all("Search", &section(cluster, &mut browser, "search"), &["no other does"]);
    ask(cluster, &mut browser, "q", "<b>");
    has_all("Search", &section(cluster, &mut browser, "search"), &["That is no name"]);
    ask(cluster, &mut browser, "image", &image.by_tag());
    let measured = section(cluster, &mut browser, "measure");
    has_all("Measure", &measured, &["16.1 MiB", "as wanted", layer, "/s"]);
    cluster.expect("a picture", browser.screenshot(&pictures().join("measured.png")));
}

#[test]
fn page_shows_what_the_node_knows_to_who_asks_from_there() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(2, Generation::V2_1));
    let [holder, node] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let image = cluster.held_image(&ImageSpec::new("page", "1", &LAYERS), &[holder], node);
    cluster.expect("pull", node.pull(Puller::Cri, &image.by_tag()));
    cluster.expect("shared", node.wait_finds(&image, PATIENCE));
    let unreadable =
        ImageSpec { manifest: Some(b"\x7fELF".to_vec()), ..ImageSpec::new("unreadable", "1", &[1000]) };
    let unreadable = cluster.unpublished_image(&unreadable.single());
    assert_eq!(unreadable.by_tag(), UNREADABLE);
    cluster.expect("store", node.store(&[unreadable]));
    let said = || node.spegel_log().contains(UNREADABLE).then_some(()).ok_or_else(|| "not yet".to_owned());
    cluster.expect("quarantined", wait_for("the mirror says so", PATIENCE, said));
    page_of_a_real_node(&cluster, node, holder, &image);

    let neighbour = SocketAddr::new(node.address(), METRICS_PORT);
    for path in ["/debug/web/", "/debug/web/?q=nginx"] {
        let mut client = cluster.expect("connect", holder.connect(neighbour));
        let seen = cluster.expect("an answer", client.get(path, &[("Host", "localhost")]));
        assert_eq!((seen.status, seen.text().contains(&image.by_tag())), (403, false), "{path}");
    }
}

#[test]
fn measurement_and_token_work_where_mirrors_want_credentials() {
    const TOKEN: &str = "0123456789abcdef";
    let mut options = ClusterOptions::new(2, Generation::V2_1);
    let token = std::env::temp_dir().join(format!("spegel-token-{}", std::process::id()));
    fs::write(&token, TOKEN).expect("/tmp is writable");
    options.spegel_args.push(format!("--debug-web-token-file={}", token.display()));
    let cluster = Cluster::new(options);
    let [holder, node] = cluster.nodes.as_slice() else { panic!("two nodes") };
    for node in [holder, node] {
        node.put_cluster_secret(&[SECRET]);
    }
    cluster.start_spegel();
    let image = cluster.held_image(&ImageSpec::new("page", "1", &LAYERS), &[holder], node);
    let get = |headers: &[(&str, &str)]| {
        let mut client =
            cluster.expect("connect", holder.connect(SocketAddr::new(node.address(), METRICS_PORT)));
        cluster.expect("an answer", client.get("/debug/web/", headers))
    };
    assert_eq!(get(&[]).status, 401);
    assert_eq!(get(&[("Authorization", "Bearer fedcba9876543210")]).status, 401);
    assert_eq!(get(&[("Authorization", &format!("Bearer {TOKEN}"))]).status, 200);
    let url = format!("http://people:{TOKEN}@{}:{METRICS_PORT}/debug/web/", node.address());
    let mut browser = cluster.expect("chromium", Browser::start(holder.netns(), cluster.dir()));
    cluster.expect("the page loads", browser.open(&url, Screen::Desktop));
    ask(&cluster, &mut browser, "image", &image.by_tag());
    let measured = section(&cluster, &mut browser, "measure");
    has_all("Measure", &measured, &["16.1 MiB", "as wanted"]);
    let pulls = section(&cluster, &mut browser, "pulls");
    has_all("Recent pulls", &pulls, &[&format!("{}:5000", holder.address()), "16.0 MiB", "complete"]);
    fs::remove_file(&token).expect("it is ours");
}
