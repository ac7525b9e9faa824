//! runc in the same guest: in a container that may do everything and sees the guest as it is.

use std::error::Error;
use std::time::Duration;

use kata_sandbox::{Command, Container, ContainerHandle, Sandbox};

const SCRIPT: &str = include_str!("runc.sh");

/// The guest's own namespaces but for its mounts, every capability, and cgroups that can be written to.
const SPECIFICATION: &str = include_str!("runc.json");

/// See the module.
pub(crate) struct Runc(ContainerHandle);

impl Runc {
    pub(crate) async fn new(sandbox: &Sandbox, image: &str) -> Result<Self, Box<dyn Error>> {
        let container = Container::from_spec(image, SPECIFICATION)?.idle();
        Ok(Self(sandbox.create_container(container).await?))
    }

    /// How long each of so many took, by the guest's clock.
    pub(crate) async fn times(&self, what: &str, count: usize) -> Result<Vec<Duration>, Box<dyn Error>> {
        let times: Vec<_> = self
            .ask(what, count)
            .await?
            .into_iter()
            .map(Duration::from_micros)
            .collect();
        match times.len() == count {
            true => Ok(times),
            false => Err(format!("{what}: {} of {count} were timed", times.len()).into()),
        }
    }

    /// Resident memory of the agent.
    pub(crate) async fn agent_bytes(&self) -> Result<u64, Box<dyn Error>> {
        let numbers = self.ask("agent", 1).await?;
        Ok(*numbers.first().ok_or("the agent's memory cannot be read")?)
    }

    async fn ask(&self, what: &str, count: usize) -> Result<Vec<u64>, Box<dyn Error>> {
        let command = Command::new("bash").args(["-c", SCRIPT, "bash", what, &count.to_string()]);
        let output = self.0.exec(command).await?.output().await?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{what}: {}: {text}{errors}", output.status).into());
        }
        let number = |line: &str| line.strip_prefix(what)?.trim().parse().ok();
        Ok(text.lines().filter_map(number).collect())
    }
}
