import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;

/** Memory of one kind for each order: `heap N`, `direct N`, `jni N` in MiB, `threads N`, `classes N`. */
public final class LedgerJvm {
    private static final int MIB = 1 << 20;
    private static final List<Object> kept = new ArrayList<>();

    /** Defines this class anew. */
    private static final class Loader extends ClassLoader {
        Class<?> define(byte[] code) {
            return defineClass("LedgerJvm", code, 0, code.length);
        }
    }

    static void obey(String order, int number) throws Exception {
        switch (order) {
            case "heap":
                for (int got = 0; got < number; got++) {
                    byte[] block = new byte[MIB / 4];
                    java.util.Arrays.fill(block, (byte) 1);
                    kept.add(block);
                    kept.add(new byte[3 * MIB / 4]);
                }
                break;
            case "direct":
                for (int got = 0; got < number; got++) {
                    ByteBuffer block = ByteBuffer.allocateDirect(MIB);
                    while (block.hasRemaining()) {
                        block.put((byte) 1);
                    }
                    kept.add(block);
                }
                break;
            case "jni":
                LeakJni.leak(number * MIB / 1000, 1000);
                break;
            case "classes":
                byte[] code;
                try (var stream = LedgerJvm.class.getResourceAsStream("LedgerJvm.class")) {
                    code = stream.readAllBytes();
                }
                for (int index = 0; index < number; index++) {
                    Class<?> defined = new Loader().define(code);
                    // Its methods are linked, too.
                    defined.getDeclaredMethods();
                    kept.add(defined);
                }
                break;
            case "threads":
                CountDownLatch running = new CountDownLatch(number);
                for (int index = 0; index < number; index++) {
                    Thread thread = new Thread(() -> {
                        running.countDown();
                        try {
                            Thread.sleep(Long.MAX_VALUE);
                        } catch (InterruptedException ignored) {
                        }
                    }, "ledger-" + index);
                    thread.setDaemon(true);
                    thread.start();
                }
                running.await();
                break;
            default:
                throw new IllegalArgumentException(order);
        }
    }

    public static void main(String[] arguments) throws Exception {
        System.loadLibrary("leak_jni");
        System.out.println("ready");
        var input = new java.io.BufferedReader(new java.io.InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String[] words = line.split(" ");
            obey(words[0], Integer.parseInt(words[1]));
            System.out.println("done");
        }
    }
}
