//! What the kernel's XFRM subsystem holds: the model of [`secureoverlay_agent_core::xfrm`].

pub use secureoverlay_agent_core::xfrm::*;
