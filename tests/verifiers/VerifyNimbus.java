import com.nimbusds.jose.JWSAlgorithm;
import com.nimbusds.jose.jwk.source.JWKSourceBuilder;
import com.nimbusds.jose.proc.JWSVerificationKeySelector;
import com.nimbusds.jose.proc.SecurityContext;
import com.nimbusds.jose.util.DefaultResourceRetriever;
import com.nimbusds.jose.util.JSONObjectUtils;
import com.nimbusds.jwt.JWTClaimsSet;
import com.nimbusds.jwt.proc.DefaultJWTClaimsVerifier;
import com.nimbusds.jwt.proc.DefaultJWTProcessor;
import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.Arrays;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLSocketFactory;
import javax.net.ssl.TrustManagerFactory;

/**
 * Verifies tokens as a service in Java does, with Nimbus JOSE + JWT.
 *
 * <pre>java -cp nimbus-jose-jwt.jar VerifyNimbus.java ISSUER CA_FILE AUDIENCE…</pre>
 *
 * Each line of standard input is a token. Each line of standard output is what the library says of
 * it, as JSON: {"accepted": claims} or {"refused": "the library's own words"}. The properties
 * https.proxyHost and https.proxyPort are the way to the issuer.
 */
public class VerifyNimbus {
  private static final int MILLIS = 10_000;
  private static final int MAX_BYTES = 64 * 1024;

  public static void main(String[] arguments) throws Exception {
    String issuer = arguments[0];
    Set<String> audiences = new HashSet<>(Arrays.asList(arguments).subList(2, arguments.length));
    var client = new DefaultResourceRetriever(MILLIS, MILLIS, MAX_BYTES, true, trusting(arguments[1]));
    var document = client.retrieveResource(URI.create(issuer + "/.well-known/openid-configuration").toURL());
    Map<String, Object> discovery = JSONObjectUtils.parse(document.getContent());
    var address = URI.create(JSONObjectUtils.getString(discovery, "jwks_uri")).toURL();
    // A key that is not known yet is looked up at once, however many are.
    var keys = JWKSourceBuilder.<SecurityContext>create(address, client).rateLimited(false).build();
    var processor = new DefaultJWTProcessor<SecurityContext>();
    processor.setJWSKeySelector(new JWSVerificationKeySelector<>(
        Set.of(JWSAlgorithm.RS256, JWSAlgorithm.ES256, JWSAlgorithm.ES384, JWSAlgorithm.ES512), keys));
    processor.setJWTClaimsSetVerifier(new DefaultJWTClaimsVerifier<>(
        audiences,
        new JWTClaimsSet.Builder().issuer(JSONObjectUtils.getString(discovery, "issuer")).build(),
        Set.of("exp", "iat", "sub"),
        Set.of()));

    var tokens = new BufferedReader(new InputStreamReader(System.in));
    for (String token = tokens.readLine(); token != null; token = tokens.readLine()) {
      Map<String, Object> said;
      try {
        said = Map.of("accepted", processor.process(token, null).toJSONObject());
      } catch (Exception error) {
        said = Map.of("refused", error.getClass().getSimpleName() + ": " + error.getMessage());
      }
      System.out.println(JSONObjectUtils.toJSONString(said));
      System.out.flush();
    }
  }

  private static SSLSocketFactory trusting(String file) throws Exception {
    var store = KeyStore.getInstance(KeyStore.getDefaultType());
    store.load(null, null);
    try (var stream = new FileInputStream(file)) {
      store.setCertificateEntry("issuer", CertificateFactory.getInstance("X.509").generateCertificate(stream));
    }
    var managers = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
    managers.init(store);
    var context = SSLContext.getInstance("TLS");
    context.init(null, managers.getTrustManagers(), null);
    return context.getSocketFactory();
  }
}
