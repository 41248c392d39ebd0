//! The reference: nginx with one worker and `sendfile`, in a node's namespace. The process that works is the only
//! one, so that its processor time and its memory are all there is.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use spegel_tests::{Node, Process, wait_for};

const PORT: u16 = 8080;
const START_MAX: Duration = Duration::from_secs(10);

/// A running nginx; ends when dropped.
#[derive(Debug)]
pub(crate) struct Nginx {
    process: Process,
    address: SocketAddr,
    root: PathBuf,
}

impl Nginx {
    /// Starts it on a node, with no files.
    pub(crate) fn start(node: &Node, dir: &Path) -> Result<Self, String> {
        let (root, config) = (dir.join("root"), dir.join("nginx.conf"));
        fs::create_dir_all(&root).map_err(|error| error.to_string())?;
        // What it does not have it is not to log, or it would pay for a line with each miss.
        let text = format!(
            "daemon off; master_process off; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n\
               access_log off; log_not_found off; sendfile on; keepalive_requests 1000000; etag off; default_type application/octet-stream;\n\
               client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;\n\
               uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
               server {{ listen {PORT}; root {root}; }}\n\
             }}\n",
            dir = dir.display(),
            root = root.display()
        );
        fs::write(&config, text).map_err(|error| error.to_string())?;
        let mut command = node.netns().command("nginx");
        command.arg("-c").arg(&config).arg("-p").arg(dir);
        let process = Process::spawn("nginx", command, &dir.join("nginx.log"));
        let address = SocketAddr::new(node.address(), PORT);
        let look = || node.connect(address)?.request("HEAD", "/nothing", &[]);
        let (answer, _) = wait_for("nginx answers", START_MAX, look)
            .map_err(|error| format!("{error}\n{}", process.log_tail(20)))?;
        if answer.status == 404 {
            Ok(Self { process, address, root })
        } else {
            Err(format!("nginx says {}", answer.status))
        }
    }

    /// Serves a file, and says where.
    pub(crate) fn add(&self, file: &Path) -> Result<String, String> {
        let name = file.file_name().ok_or("a file has a name")?;
        symlink(file, self.root.join(name)).map_err(|error| error.to_string())?;
        Ok(format!("/{}", name.display()))
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}
