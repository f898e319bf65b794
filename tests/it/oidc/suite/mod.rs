//! A test for each module of the OpenID Foundation's certification plans, under the module's name:
//! what it requires of a provider, and what it merely warns of.

mod logout;
