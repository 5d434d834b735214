import java.util.ArrayList;

/** Grows the Java heap, touched by the program itself, and says by how much. */
public final class FaultsJava {
    private static final ArrayList<byte[]> KEPT = new ArrayList<>();

    private static void growHeap() {
        for (int index = 0; index < 48; index++) {
            KEPT.add(new byte[1 << 20]);
        }
    }

    public static void main(String[] arguments) throws Exception {
        System.out.println("ready");
        System.in.read();
        System.in.skip(System.in.available());
        growHeap();
        System.out.println("truth {\"is_strict\":false,\"sites\":[{\"lens\":\"java\",\"function\":\"heap\","
            + "\"outstanding_bytes\":" + ((long) KEPT.size() << 20) + ",\"outstanding_count\":1}]}");
        while (System.in.read() >= 0) {
        }
    }
}
