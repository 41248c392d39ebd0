//! A headless Chromium, driven over its DevTools protocol: what a person with a browser sees, at any width.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::netns::NetNs;
use crate::process::{Process, tail};

/// A browser starts in a second on an idle machine; a loaded one takes a multiple.
const ANSWER_MAX: Duration = Duration::from_secs(60);
const LOAD_MAX: Duration = Duration::from_secs(60);

/// What a page is looked at with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Screen {
    Desktop,
    Phone,
}

impl Screen {
    /// Width and height in CSS pixels.
    #[must_use]
    pub const fn size(self) -> (u32, u32) {
        match self {
            Self::Desktop => (1280, 900),
            Self::Phone => (360, 740),
        }
    }
}

/// A browser with one page, inside a node's network; ends when dropped.
#[derive(Debug)]
pub struct Browser {
    to: File,
    from: Receiver<Value>,
    session: Option<String>,
    next: u64,
    _process: Process,
}

impl Browser {
    /// Starts it; its files are in `dir`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(netns: &NetNs, dir: &Path) -> Result<Self, String> {
        let dir = dir.join("browser");
        let text = |error: std::io::Error| format!("{}: {error}", dir.display());
        fs::create_dir_all(&dir).map_err(text)?;
        let (orders, answers) = (dir.join("orders"), dir.join("answers"));
        for fifo in [&orders, &answers] {
            mkfifo(fifo, Mode::S_IRWXU).map_err(|error| format!("{}: {error}", fifo.display()))?;
        }
        let mut command = netns.command("sh");
        // Chromium speaks on descriptors 3 and 4. As root it has no sandbox, and the page is ours.
        command.args(["-c", "dir=$0; exec chromium \"$@\" 3<\"$dir/orders\" 4>\"$dir/answers\""]).arg(&dir);
        command.args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]);
        command.args(["--remote-debugging-pipe", "--disable-background-networking", "--hide-scrollbars"]);
        command.arg(format!("--user-data-dir={}", dir.join("profile").display()));
        let log = dir.join("chromium.log");
        let process = Process::spawn("chromium", command, &log);
        let to = OpenOptions::new().write(true).open(&orders).map_err(text)?;
        let answers = File::open(&answers).map_err(text)?;
        let (sender, from) = mpsc::channel();
        // Ends with the browser, which closes its end.
        thread::spawn(move || {
            for message in BufReader::new(answers).split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).unwrap_or_default();
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self { to, from, session: None, next: 1, _process: process };
        let opened = browser.open_page();
        opened.map_err(|error| format!("{error}\n{}", tail(&log, 25)))?;
        Ok(browser)
    }

    fn open_page(&mut self) -> Result<(), String> {
        let target = self.call("Target.createTarget", json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = self.call("Target.attachToTarget", attach)?;
        self.session = attached["sessionId"].as_str().map(ToOwned::to_owned);
        Ok(())
    }

    /// Opens a page on such a screen and waits until it is there.
    ///
    /// # Errors
    /// If it does not load.
    pub fn open(&mut self, url: &str, screen: Screen) -> Result<(), String> {
        let (width, height) = screen.size();
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": screen == Screen::Phone});
        self.call("Emulation.setDeviceMetricsOverride", metrics)?;
        let went = self.call("Page.navigate", json!({"url": url}))?;
        match went["errorText"].as_str() {
            Some(error) => Err(format!("{url}: {error}")),
            None => self.wait_for("document.readyState === 'complete'"),
        }
    }

    /// Shows pages as to people who prefer dark ones, or not.
    ///
    /// # Errors
    /// If the browser does not take it.
    pub fn prefer_dark(&mut self, is_dark: bool) -> Result<(), String> {
        let scheme = json!({"name": "prefers-color-scheme", "value": if is_dark { "dark" } else { "light" }});
        self.call("Emulation.setEmulatedMedia", json!({"features": [scheme]})).map(drop)
    }

    /// Waits until an expression is true on the page, whichever page that is by then.
    ///
    /// # Errors
    /// If it does not become so.
    pub fn wait_for(&mut self, expression: &str) -> Result<(), String> {
        let start = Instant::now();
        loop {
            match self.evaluate(expression) {
                Ok(Value::Bool(true)) => return Ok(()),
                seen if start.elapsed() > LOAD_MAX => return Err(format!("{expression}: {seen:?}")),
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// The value of a JavaScript expression on the page.
    ///
    /// # Errors
    /// If it throws.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value, String> {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", asked)?;
        match answer.get("exceptionDetails") {
            Some(details) => Err(format!("{expression}: {details}")),
            None => Ok(answer["result"]["value"].clone()),
        }
    }

    /// Presses a key as a person does who has no mouse: `Tab`, `Enter`, or types a text.
    ///
    /// # Errors
    /// If the browser does not take it.
    pub fn press(&mut self, key: &str) -> Result<(), String> {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            text => return self.call("Input.insertText", json!({"text": text})).map(drop),
        };
        for kind in ["keyDown", "keyUp"] {
            let event =
                json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text});
            self.call("Input.dispatchKeyEvent", event)?;
        }
        Ok(())
    }

    /// Saves what the whole page looks like as a PNG.
    ///
    /// # Errors
    /// If it cannot be had or written.
    pub fn screenshot(&mut self, file: &Path) -> Result<(), String> {
        let picture = self.call("Page.captureScreenshot", json!({"captureBeyondViewport": true}))?;
        let data = picture["data"].as_str().ok_or("no picture")?;
        let png = STANDARD.decode(data).map_err(|error| error.to_string())?;
        fs::write(file, png).map_err(|error| format!("{}: {error}", file.display()))
    }

    fn call(&mut self, method: &str, params: Value) -> Result<Value, String> {
        let id = self.next;
        self.next += 1;
        let mut order = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session {
            order["sessionId"] = json!(session);
        }
        let mut bytes = order.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).map_err(|error| format!("{method}: {error}"))?;
        loop {
            // Events come in between.
            let message = self.from.recv_timeout(ANSWER_MAX).map_err(|error| format!("{method}: {error}"))?;
            if message["id"] == id {
                return match message.get("error") {
                    Some(error) => Err(format!("{method}: {error}")),
                    None => Ok(message["result"].clone()),
                };
            }
        }
    }
}
