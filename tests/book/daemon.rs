// Included by the book's examples: a daemon for one of them, in the example's own process.

/// Stops with the value, and leaves nothing behind.
struct Daemon {
    folder: tempfile::TempDir,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    /// Starts one, where `Client::connect` finds it.
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("hshm-book-").tempdir().expect("a directory");
        let (socket, state) = (folder.path().join("socket"), folder.path().join("state"));
        std::fs::create_dir(&state).expect("a directory");
        // SAFETY: the example has no other thread yet.
        unsafe { std::env::set_var("HSHM_SOCKET", &socket) };
        let mut config = hshmd::config::Config::new(socket, state);
        config.remove_on_shutdown = true;
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let on_ready = move |_: &_| ready.send(()).expect("the example waits");
            hshmd::daemon::run(config, on_ready).expect("the daemon runs");
        });
        is_ready.recv().expect("the daemon starts");
        Self { folder, thread: Some(thread) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let this = nix::unistd::Pid::this();
        nix::sys::signal::kill(this, nix::sys::signal::Signal::SIGTERM).expect("a signal");
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the daemon stops");
        }
        assert!(self.folder.path().exists());
    }
}
