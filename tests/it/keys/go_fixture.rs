//! A key directory and a JWKS as the Go program leaves them, made with OpenSSL for these tests
//! only. Nothing trusts these keys.

pub(super) const OLD_KID: &str = "tb-1740172800";
pub(super) const OLD_PRIVATE: &str = r#"{
  "alg": "RS256",
  "d": "Y4VWzjyNi5cwCnmT1PJRIObORby7KzETmrUFSewaXV4NmEzc3eoX4vtfLl3oHdghn1axjZ4r-bNPVuUkRt_xCZI5LiIKU_6xRsKA0Jg9Gyjue7yuuza4prwI81maOOjU5EYBf9FgWkkp2vl4b7d3hrJ7B48y2qcQjIkwG8BmqxrhD6aA-MwC-8tYdooNj5-Nby38oFdGiUjr1hOIuTX7cIMjaa77sPIndpi5K4ifdeOXaa-S3n0LhfIVy82QGNRlpNc3GjIyz5U8jB17Uc5Ql21iCemIbHm-kVLiTGm7QA-BT3RKJGgUMwmMBw_muDQ_y-Q0i9ATvB4Jngcevr7mlQ",
  "dp": "SbjfP7uypXmOWkYYZDoikdh-d-tTvrnBvpbBxYrIUiRUD0DuKaRmQOaOQaZZWl_Uic7olZVryJExdWPJ5v-S-y6e_ejldsZukjnHCqzERt5pp10ppyHXhsqON5ouA7eJe6uqgJiKRWCjC14PRN8ckgIUyYjpKVYqCqewP-Uo-LE",
  "dq": "S6_1SBtEXqqDCzvsOy7t2QDhIbk3EcWFyoZOuKYblfrJtMhryNYcm_4FTNN3O1fU2OgIgMdCRu03UmQc7avcy_XejW2Fbov6wWEAfMWkeAGWOXRkdMrztneWqKV6rxXB-GcQIDZ6j2CBy95cgq4id_tXaMyWL7NwQYcrwa7RxWk",
  "e": "AQAB",
  "kid": "tb-1740172800",
  "kty": "RSA",
  "n": "ysa40dMwdpgoEA7ivTOdTXrfMISSWUkcAYBSgpX3DMcHijoYAqp6uEahDjMRjCrQocrTR_Rsp5wryrXrWsYQ5qUTKPl4KB8M0Ul_ZFTCtAgx5GAyG9odQLhDbGXCh3Al7N-xWR-bPKKuqyDTdpBahssD2DDrSBl-gSfrWJRPhaRt2mw0LS9RIaAroueAzN4Ti-0B5V4BE1Nm3_S-BRFw34MnvrNz0L8P5ydDfpzn9sZgXPasDxJqgtLRAcCrcvAGnaqTgnCHkJTxUtz53hcZYnEobrWeBIvmI5N2l1b7DY76SerpF8jQVuxB3v-SaXLnDXH4xkyiImqZafD3aI24iQ",
  "p": "-AZtCAdj_1G9L3lBAMTmMIG9I_qvtHs4_KRu-Okob5uS6yTeLkraiXj_XzTRA8zkDlfsSz_Vf-hfII4hkv75hJgoHYqBT1Jjx8IX0ZTABYCVyTW8j42Y31SywVh9tkTuRkv8y_-45wQ1_HCh8a45oLs6FMlCyg7DWUfzECgRNrM",
  "q": "0UvWm885h3Dq7xhR0u0hOarRwPGIyBjLw3fphW5wYbdSpl50whru9MBe04xsLUVDMcifyY6Sc4eFSeCf4l5j5GBg0ZjESfw2PTiqCah5_Y82FaGzRxGXMhy-oXcSEQc6F9x9YM-ufSjt8ZIWC_Qha_M0SBytpqp-TcQWC281UdM",
  "qi": "v2J4PSG2RVk4uKCdYcbvr8Ebv3_yzfsEUxYXP4tQ1TKa9KF_nvbMizkuMXES0FAUM0QgP7zeDnX0KbG_HWARGaLRLtpH5dKDMMmZZcUr9xvlAb09bYd0zdvTUelLPJh3QfRirs88H9EjES8oaGdB4R2yjwCk95OOGdY2UqfFVS8"
}"#;
pub(super) const OLD_PUBLIC: &str = r#"{
  "alg": "RS256",
  "e": "AQAB",
  "kid": "tb-1740172800",
  "kty": "RSA",
  "n": "ysa40dMwdpgoEA7ivTOdTXrfMISSWUkcAYBSgpX3DMcHijoYAqp6uEahDjMRjCrQocrTR_Rsp5wryrXrWsYQ5qUTKPl4KB8M0Ul_ZFTCtAgx5GAyG9odQLhDbGXCh3Al7N-xWR-bPKKuqyDTdpBahssD2DDrSBl-gSfrWJRPhaRt2mw0LS9RIaAroueAzN4Ti-0B5V4BE1Nm3_S-BRFw34MnvrNz0L8P5ydDfpzn9sZgXPasDxJqgtLRAcCrcvAGnaqTgnCHkJTxUtz53hcZYnEobrWeBIvmI5N2l1b7DY76SerpF8jQVuxB3v-SaXLnDXH4xkyiImqZafD3aI24iQ"
}"#;
pub(super) const NEW_KID: &str = "tb-1740259200";
pub(super) const NEW_PRIVATE: &str = r#"{
  "alg": "RS256",
  "d": "Eg466p4DCuSWmvJgYxQrRS8Lw3VapRO1e5SOa94UDO7uuQflZWt4Sy1w08ua-1zyktJiKCpaBiDLgZ7ZV12HqHX_o9M8ZydbxDWJDyeHK__6rr7VOcr40basDWaqa03wX1N7vTPNFHRUA6KzgUL4KbeP3RntA6eXPvab6iBioTVtYPSznshXpYE_Xpq1mQIacUQqXC8N0nU8VjyCOU5EAH6nqLCG-en8q27ziKx2WjditjO_AsQPZqIm7Pb1nrJ3V2ALSevITMH-C9kAi5OURPdI3fQ0QAfwLOIse_A4zg363cMF5vumEWq2HC6agPwzrV-VFtmBDslBJmcx1TUxwQ",
  "dp": "I_lGPWfEQ2uWL7ph3O6sI2xtEZ-TiDIyR8o9Nz3049GxbcP0KDRi27puBlBaZj1jT9uOe235VUkcY6OSmgcZA1XjAxKajlYqKjxnkzx9d_eXGHDARTmsN9s2I_7LX-KLxtntCdyRQ7oZt-ZDutd5vBsU-W-Xc5mCzdOE9y2eOIE",
  "dq": "iHLpdD429RB2YWDX2uDkqpnS4yVJKwJlstZfz59ApEb5sfzxLxSVU5fhcNG5GIGcEgAtRtuyeSm3EH3hGK7g-QT8hlBayqBTO2anbLMPUqXzok5RF0yI2izaJHeLfvGYzNJ_MGR7keNJpL1bViQIhtjfpfk-SPZXHN8cCoMG-SE",
  "e": "AQAB",
  "kid": "tb-1740259200",
  "kty": "RSA",
  "n": "sEIU94NLhFyQzt22f6ZAE06RuNmV-JPl0HNjSwtD0YQsAMlHEj25mDt8fca3kRvt6qT1cHOzOF8WayBuDrbOaKjaVnqafPMqXguaNqpsxd-TWeDEyR3JE-eWJeR_-GMhld9wCgyh6zIHNKFrKz2oIbLENw4EmRXdb2-DQn6qZaF52jksIMTUd1M3GMmiwAxyTzyYJIa-pZlHdPc2gbqB6tzAVkafXYbseGsYXxCDoc6vgugVdam_-1k5mz3Nbl4ZKMo0Zj5Qaa2XI9xJolKp4dsnavZJ8O2fyq8F6-Oel8e0wRfEA_RqnhEG-SqE492MnLFLyXm7OQSw91chcMM9zQ",
  "p": "3VSNqsdrEluOc5CGYFZaOOx_O2zZcg3nDanLKbOT_XdtGNXYG-Qx_dHmD-tAqcOqkYRViITG4TNHWR0V9OO2zkXxy6WUKYviZqKBxRKSCShy-Y4yUxrbBp6R6NrIHY8JW8BC_8ANFL_RhSSFdUMdNtCh_sON3yVbZ-DrlrODLOE",
  "q": "y94dRQFrW-HP06_XQvUeXmXcxznrpR2m8kwGwiFucSCH62bgRkFMSsfckQlxSEqjD85RX-gOUMBFESn7virS_Y9qqKAPGSMlF-qKCNa_7aKQUc_WAxFSoiPiCGn8TXzwuSToiCs2DqdnRyY9RwLvBZBzCW_A42f6gmTm4-8bYm0",
  "qi": "Sdo2WDTSiKP1uGaeW15lC6KvBhMdF5wh4WBCUcdbF933RFU02aeHfRQ0VH3km_dTVLiiN55yn90AmPoc5vBSA234-UYQKnqGznugyD1qpDdwKGlwv0CCh0WfyhUYe8guORJCl529GAonO6OQMNJ7O8l_8yn-iMvMqRWQevzEDgk"
}"#;
pub(super) const NEW_PUBLIC: &str = r#"{
  "alg": "RS256",
  "e": "AQAB",
  "kid": "tb-1740259200",
  "kty": "RSA",
  "n": "sEIU94NLhFyQzt22f6ZAE06RuNmV-JPl0HNjSwtD0YQsAMlHEj25mDt8fca3kRvt6qT1cHOzOF8WayBuDrbOaKjaVnqafPMqXguaNqpsxd-TWeDEyR3JE-eWJeR_-GMhld9wCgyh6zIHNKFrKz2oIbLENw4EmRXdb2-DQn6qZaF52jksIMTUd1M3GMmiwAxyTzyYJIa-pZlHdPc2gbqB6tzAVkafXYbseGsYXxCDoc6vgugVdam_-1k5mz3Nbl4ZKMo0Zj5Qaa2XI9xJolKp4dsnavZJ8O2fyq8F6-Oel8e0wRfEA_RqnhEG-SqE492MnLFLyXm7OQSw91chcMM9zQ"
}"#;
/// The object in the bucket: oldest key first, compact.
pub(super) const JWKS: &str = r#"{"keys":[{"alg":"RS256","e":"AQAB","kid":"tb-1740172800","kty":"RSA","n":"ysa40dMwdpgoEA7ivTOdTXrfMISSWUkcAYBSgpX3DMcHijoYAqp6uEahDjMRjCrQocrTR_Rsp5wryrXrWsYQ5qUTKPl4KB8M0Ul_ZFTCtAgx5GAyG9odQLhDbGXCh3Al7N-xWR-bPKKuqyDTdpBahssD2DDrSBl-gSfrWJRPhaRt2mw0LS9RIaAroueAzN4Ti-0B5V4BE1Nm3_S-BRFw34MnvrNz0L8P5ydDfpzn9sZgXPasDxJqgtLRAcCrcvAGnaqTgnCHkJTxUtz53hcZYnEobrWeBIvmI5N2l1b7DY76SerpF8jQVuxB3v-SaXLnDXH4xkyiImqZafD3aI24iQ"},{"alg":"RS256","e":"AQAB","kid":"tb-1740259200","kty":"RSA","n":"sEIU94NLhFyQzt22f6ZAE06RuNmV-JPl0HNjSwtD0YQsAMlHEj25mDt8fca3kRvt6qT1cHOzOF8WayBuDrbOaKjaVnqafPMqXguaNqpsxd-TWeDEyR3JE-eWJeR_-GMhld9wCgyh6zIHNKFrKz2oIbLENw4EmRXdb2-DQn6qZaF52jksIMTUd1M3GMmiwAxyTzyYJIa-pZlHdPc2gbqB6tzAVkafXYbseGsYXxCDoc6vgugVdam_-1k5mz3Nbl4ZKMo0Zj5Qaa2XI9xJolKp4dsnavZJ8O2fyq8F6-Oel8e0wRfEA_RqnhEG-SqE492MnLFLyXm7OQSw91chcMM9zQ"}]}"#;
