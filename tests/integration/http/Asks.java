import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.time.Duration;

/**
 * Java's own client with its defaults, which asks for HTTP/2 by an upgrade. Its arguments are an address, and for each
 * request a method, a path, how the body is framed (none, length, expect, chunked) and the body. It prints each
 * answer's status and body in a line.
 */
public class Asks {
    public static void main(String[] given) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int at = 1; at < given.length; at += 4) {
            String framed = given[at + 2];
            BodyPublisher text = BodyPublishers.ofString(given[at + 3]);
            BodyPublisher body = switch (framed) {
                case "none" -> BodyPublishers.noBody();
                case "chunked" -> BodyPublishers.fromPublisher(text); // of a length that it does not know
                default -> text;
            };
            HttpRequest request = HttpRequest.newBuilder(URI.create(given[0] + given[at + 1]))
                .header("Content-Type", "application/json")
                .method(given[at], body)
                .expectContinue(framed.equals("expect"))
                .timeout(Duration.ofSeconds(30))
                .build();
            HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.body().strip().replace('\n', ' '));
        }
    }
}
