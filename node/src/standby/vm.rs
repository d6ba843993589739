//! The VM that a standby holds a copy of, as the runner sees it: whoever builds a virtual machine monitor implements this.

use mc_core::{
    id::{Epoch, Generation},
    image::Image,
};
use std::path::PathBuf;

/// A VM that waits on this host. Its calls come from the runner's loop, which waits for them. One that takes longer than
/// [`crate::HostSettings::stall_after`] in a session costs beats: the primary takes this side for dead, and goes on alone.
///
/// ```
/// use mc_core::{id::{Epoch, Generation, PAGE_SIZE}, image::Image, ram::SharedRam};
/// use node::standby::{Ready, StandbyVm};
///
/// /// A VM whose memory is one page, and whose device state is a line of text.
/// struct Page { continued: Option<String> }
///
/// impl StandbyVm for Page {
///     fn prepare(&mut self, profile: &[u8]) -> anyhow::Result<Ready> {
///         anyhow::ensure!(profile == b"a page", "another VM");
///         let image = Image::new(vec![SharedRam::anonymous(PAGE_SIZE)?]);
///         Ok(Ready { profile: profile.to_vec(), image, instance: 1 })
///     }
///
///     fn take_over(&mut self, image: &Image, _: Generation, _: Epoch) -> anyhow::Result<()> {
///         self.continued = Some(String::from_utf8(image.device().to_vec())?);
///         Ok(())
///     }
///
///     fn discard(&mut self) {}
/// }
///
/// let mut vm = Page { continued: None };
/// let ready = vm.prepare(b"a page")?;
/// vm.take_over(&ready.image, Generation(3), Epoch(9))?;
/// assert_eq!(vm.continued.as_deref(), Some(""));
/// # Ok::<(), anyhow::Error>(())
/// ```
pub trait StandbyVm {
    /// A primary that the register vouches for has a VM with this profile: makes ready for a copy of it. There is no other copy now.
    ///
    /// # Errors
    /// In words for the primary: this host cannot have it.
    fn prepare(&mut self, profile: &[u8]) -> anyhow::Result<Ready>;

    /// Whether this VM could be run from this image, which stands still meanwhile. Called only where [`super::Settings::rehearse`] says
    /// so; output is not held before it has passed.
    ///
    /// # Errors
    /// In words for the primary: then this copy does not protect the VM.
    fn rehearse(&mut self, _image: &Image) -> anyhow::Result<()> {
        Ok(())
    }

    /// The register says that the VM is this node's: it is run from this image, which holds that epoch, and its output leaves.
    ///
    /// # Errors
    /// It does not run, and the image is as it was. It is tried again for ever: nobody else may run this VM.
    fn take_over(&mut self, image: &Image, generation: Generation, epoch: Epoch) -> anyhow::Result<()>;

    /// An error ends the runner, and this may be the VM's last copy: writes it where it outlives this process, if there is such a
    /// place. Returns where.
    ///
    /// # Errors
    /// It could not be written.
    fn keep(&mut self, _image: &Image, _generation: Generation, _epoch: Epoch) -> anyhow::Result<Option<PathBuf>> {
        Ok(None)
    }

    /// The copy, or what was prepared for one, is of no use any more. Called without one, too.
    fn discard(&mut self);
}

/// What waits for a primary's checkpoints.
#[derive(Debug)]
pub struct Ready {
    /// Of the VM here, for the primary to compare. Bytes of any form, up to 1 MiB.
    pub profile: Vec<u8>,
    /// What checkpoints are applied to.
    pub image: Image,
    /// Tells the copy that would run here from every other one: see [`mc_core::register::Owner::instance`].
    pub instance: u64,
}
